//! API versions: the first part of every path.
//!
//! The list is that of an instance launched in 2024. An instance shows under a version what that version had when it came
//! out, and nothing newer: the filtering is real (cloud-init's recorded data).

/// Every version, oldest first. They sort bytewise, on which clients rely.
pub const VERSIONS: [&str; 29] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-07-09",
    "2022-09-24",
    "2024-04-11",
];

/// What stands for the newest version in a path.
pub const LATEST: &str = "latest";

/// A version: its place in [`VERSIONS`], or one past the end for [`LATEST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(u8);

impl ApiVersion {
    /// The version that a path begins with.
    pub(super) fn parse(segment: &str) -> Option<Self> {
        if segment == LATEST {
            return Some(Self(VERSIONS.len() as u8));
        }
        let place = VERSIONS.iter().position(|version| *version == segment)?;
        u8::try_from(place).ok().map(Self)
    }

    /// The version of that name. Only for constants: an unknown name does not compile.
    pub(super) const fn since(name: &str) -> Self {
        let mut place = 0;
        while place < VERSIONS.len() {
            if is_same(VERSIONS[place].as_bytes(), name.as_bytes()) {
                return Self(place as u8);
            }
            place += 1;
        }
        panic!("no such version is served")
    }
}

/// `==` for bytes, which is not yet `const`.
const fn is_same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// What `GET /` answers: every version on a line of its own, and `latest`.
pub(super) fn listing() -> String {
    let mut listing = VERSIONS.join("\n");
    listing.push('\n');
    listing.push_str(LATEST);
    listing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_is_the_recorded_one() {
        let listing = listing();
        assert_eq!((listing.len(), listing.lines().count()), (318, 30));
        assert!(listing.lines().is_sorted());
    }

    #[test]
    fn versions_are_parsed_and_ordered() {
        let parse = |name: &str| ApiVersion::parse(name);
        assert_eq!(
            parse("2016-09-02"),
            Some(const { ApiVersion::since("2016-09-02") })
        );
        assert!(parse("1.0") < parse("2007-01-19") && parse("2024-04-11") < parse("latest"));
        // List-only labels of the documentation, and what never was.
        for name in [
            "2018-05-23",
            "2020-08-24",
            "2016-11-15",
            "2030-01-01",
            "Latest",
            "",
            "1",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
