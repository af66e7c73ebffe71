//! A walk through the tree as a client does it that follows the listings.

/// One path that something is at, without a slash at its end.
#[derive(Clone, Debug)]
pub struct Place {
    /// Begins with a slash and the version.
    pub path: String,
    /// Whether more is below it.
    pub is_directory: bool,
    /// What is at it.
    pub body: Vec<u8>,
}

/// Walks the tree of a version. `fetch` gets what is at a path; it may have nothing for user data alone, which is listed
/// always.
///
/// # Panics
/// When a listing is not text, or names what is not there.
pub fn walk(version: &str, fetch: impl FnMut(&str) -> Option<Vec<u8>>) -> Vec<Place> {
    let mut walk = Walk {
        root: format!("/{version}"),
        fetch,
        places: Vec::new(),
    };
    walk.enter(&walk.root.clone(), true);
    walk.places
}

struct Walk<F> {
    root: String,
    fetch: F,
    places: Vec<Place>,
}

impl<F: FnMut(&str) -> Option<Vec<u8>>> Walk<F> {
    fn enter(&mut self, path: &str, is_directory: bool) {
        let Some(body) = (self.fetch)(path) else {
            let may_miss = path == format!("{}/user-data", self.root);
            assert!(may_miss, "{path} is listed and not there");
            return;
        };
        self.places.push(Place {
            path: path.to_owned(),
            is_directory,
            body: body.clone(),
        });
        if is_directory {
            let listing = String::from_utf8(body).expect("listings are text");
            for line in listing.lines() {
                let (name, is_directory) = self.entry(path, line);
                self.enter(&format!("{path}/{name}"), is_directory);
            }
        }
    }

    /// The name that a line of a listing stands for, and whether there is more below it.
    fn entry<'l>(&self, directory: &str, line: &'l str) -> (&'l str, bool) {
        let directory = directory.strip_prefix(&self.root);
        match directory.expect("the walk stays in its version") {
            "" => (line, line != "user-data"),
            "/meta-data/public-keys" => {
                let (index, _name) = line.split_once('=').expect("an index and a name");
                (index, true)
            }
            "/meta-data/tags/instance" => (line, false),
            _ => match line.strip_suffix('/') {
                Some(name) => (name, true),
                None => (line, false),
            },
        }
    }
}
