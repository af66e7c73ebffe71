//! Which of the known words somebody meant.

/// The known word that is nearest to what was written, if one is near: at most every third letter wrong. Case, `-` and
/// `_` do not count.
#[must_use]
pub fn nearest<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    let written = plain(written);
    let distances = known
        .iter()
        .map(|word| (distance(&written, &plain(word)), *word));
    let (distance, word) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= plain(word).len().div_ceil(3)).then_some(word)
}

fn plain(word: &str) -> Vec<char> {
    word.chars()
        .filter(|c| !matches!(c, '-' | '_'))
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// Damerau and Levenshtein's distance: insertions, deletions, changes, and swaps of neighbours.
fn distance(one: &[char], other: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let change = last[j] + usize::from(a != b);
            let mut best = change.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(written: &str, expected: Option<&str>) {
        let known = ["name", "port", "image-id", "http-tokens", "http-endpoint"];
        assert_eq!(nearest(written, &known), expected, "{written}");
    }

    #[test]
    fn a_slip_is_understood_and_nonsense_is_not() {
        check("prot", Some("port"));
        check("ports", Some("port"));
        check("image_id", Some("image-id"));
        check("ImageId", Some("image-id"));
        check("http-token", Some("http-tokens"));
        check("endpoint", Some("http-endpoint"));
        check("xyz", None);
        check("", None);
    }
}
