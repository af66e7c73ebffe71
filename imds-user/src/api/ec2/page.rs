//! Pages of a long list: `MaxResults` of it, and a token with which the next call goes on. The token names the last thing that
//! was shown, so that a list which changes meanwhile shows nothing twice and leaves out nothing that was there all along.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;

/// Which part of a list is wanted.
pub(super) struct Page {
    after: Option<String>,
    max: usize,
}

/// A part of a list.
pub(super) struct Part<T> {
    pub(super) items: Vec<T>,
    pub(super) next_token: Option<String>,
}

impl Page {
    /// Reads what a call wants; without a number everything, up to the most that one may ask for.
    pub(super) fn read(params: &Params<'_>, range: RangeInclusive<i32>) -> Result<Self, Refusal> {
        let max = params.number("MaxResults", range.clone())?;
        let max = usize::try_from(max.unwrap_or(*range.end())).unwrap_or(usize::MAX);
        let after = params.text("NextToken").map(decode).transpose()?;
        Ok(Self { after, max })
    }

    /// A page that holds everything.
    pub(super) fn all() -> Self {
        Self {
            after: None,
            max: usize::MAX,
        }
    }

    /// Cuts it out of the list. `name` names things so that no two have the same name; the list is put into the order of the
    /// names.
    pub(super) fn cut<T>(
        self,
        list: impl IntoIterator<Item = T>,
        name: impl Fn(&T) -> String,
    ) -> Part<T> {
        let mut named: Vec<(String, T)> = list
            .into_iter()
            .map(|thing| (name(&thing), thing))
            .filter(|(name, _)| self.after.as_ref().is_none_or(|after| name > after))
            .collect();
        named.sort_by(|(one, _), (other, _)| one.cmp(other));
        let has_more = named.len() > self.max;
        named.truncate(self.max);
        let last = named.last().filter(|_| has_more);
        Part {
            next_token: last.map(|(name, _)| URL_SAFE_NO_PAD.encode(name)),
            items: named.into_iter().map(|(_, thing)| thing).collect(),
        }
    }
}

fn decode(token: &str) -> Result<String, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    let name = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    name.ok_or_else(|| {
        Refusal::new(
            Code::InvalidNextToken,
            format!("The token '{token}' is invalid"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::query::Query;

    fn read(form: &str) -> Result<Page, Refusal> {
        let query = Query::read(form.as_bytes(), b"").unwrap();
        Page::read(&query.params(), 2..=4)
    }

    /// Walks through a list of numbers.
    fn check(size: &str, n_things: u32, pages: &[&[u32]]) {
        let mut form = size.to_owned();
        for expected in pages {
            let page = read(&form).unwrap();
            let part = page.cut((0..n_things).rev(), |number| format!("{number:03}"));
            assert_eq!(part.items, *expected, "{form}");
            form = match part.next_token {
                Some(token) => format!("{size}&NextToken={token}"),
                None => "the end".into(),
            };
        }
        assert_eq!(form, "the end");
    }

    #[test]
    fn a_list_comes_in_pages() {
        check("MaxResults=2", 5, &[&[0, 1], &[2, 3], &[4]]);
        check("MaxResults=2", 4, &[&[0, 1], &[2, 3]]);
        check("MaxResults=3", 0, &[&[]]);
        check("A=", 5, &[&[0, 1, 2, 3], &[4]]);
    }

    #[test]
    fn what_is_no_page_is_refused() {
        for (form, code) in [
            ("MaxResults=1", Code::InvalidParameterValue),
            ("MaxResults=5", Code::InvalidParameterValue),
            ("MaxResults=x", Code::InvalidParameterValue),
            ("NextToken=%21", Code::InvalidNextToken),
            ("NextToken=_w", Code::InvalidNextToken),
        ] {
            assert_eq!(
                read(form).err().map(|refusal| refusal.code),
                Some(code),
                "{form}"
            );
        }
    }
}
