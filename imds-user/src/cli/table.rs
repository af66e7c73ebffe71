//! Tables for people: columns as wide as their widest cell, numbers to the right.

use std::io::{self, Write};

use anstyle::Style;

use super::DIM;

/// On which side of its column a cell stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Align {
    Left,
    Right,
}

/// A text and how it looks.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(super) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self {
            text: text.into(),
            style,
        }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text.to_string(), Style::new())
    }
}

/// Rows of cells under the columns' heads.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    columns: [(&'static str, Align); N],
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(columns: [(&'static str, Align); N]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }

    /// Writes the table, each line indented by two spaces. Columns without a head have no line for it.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let heads = self.columns.map(|(head, _)| Cell::styled(head, DIM));
        let widths = self.widths();
        if self.columns.iter().any(|(head, _)| !head.is_empty()) {
            self.write_row(out, &heads, widths)?;
        }
        for row in &self.rows {
            self.write_row(out, row, widths)?;
        }
        Ok(())
    }

    fn widths(&self) -> [usize; N] {
        std::array::from_fn(|column| {
            let head = self.columns[column].0.chars().count();
            self.rows
                .iter()
                .map(|row| row[column].text.chars().count())
                .fold(head, usize::max)
        })
    }

    /// Blanks are outside the style, and there are none at a line's end: an empty cell's are the next one's.
    fn write_row(
        &self,
        out: &mut dyn Write,
        row: &[Cell; N],
        widths: [usize; N],
    ) -> io::Result<()> {
        let mut blanks = 2;
        for (column, Cell { text, style }) in row.iter().enumerate() {
            if text.is_empty() {
                blanks += widths[column] + 2;
                continue;
            }
            let padding = widths[column] - text.chars().count();
            let (before, after) = match self.columns[column].1 {
                Align::Left => (0, padding),
                Align::Right => (padding, 0),
            };
            write!(
                out,
                "{:width$}{style}{text}{style:#}",
                "",
                width = blanks + before
            )?;
            blanks = after + 2;
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_text() {
        let mut table = Table::new([
            ("NAME", Align::Left),
            ("COUNT", Align::Right),
            ("NOTE", Align::Left),
        ]);
        table.row([
            "web".into(),
            7.into(),
            Cell::styled("fine", super::super::GOOD),
        ]);
        table.row(["a-longer-name".into(), 1_234_567.into(), "é".into()]);
        table.row(["".into(), 8.into(), "".into()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let text = anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string();
        let expected = "  NAME             COUNT  NOTE
  web                  7  fine
  a-longer-name  1234567  é
                       8
";
        assert_eq!(text, expected);
        assert!(out.contains(&0x1b), "styles are written");
    }
}
