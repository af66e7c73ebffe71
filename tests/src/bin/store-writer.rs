//! A process that counts in one record of a store and says what it counted to, each number once it is kept: to be killed, or to
//! race with others. Its arguments are the store's file, the id of an instance, and how often.

use std::io::{self, Write};
use std::path::Path;

use imds_tests::records::count_up;
use imds_user::store::Sqlite;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, id, count] = &arguments[..] else {
        return Err(io::Error::other("write a file, an id and a number"));
    };
    let id = id.parse().map_err(io::Error::other)?;
    let count: u32 = count.parse().map_err(io::Error::other)?;
    let mut store = Sqlite::open(Path::new(path)).map_err(io::Error::other)?;
    // Every line is out before the next is counted.
    let mut out = io::stdout().lock();
    for _ in 0..count {
        let (counted, _) = count_up(&mut store, id);
        writeln!(out, "{counted}")?;
        out.flush()?;
    }
    Ok(())
}
