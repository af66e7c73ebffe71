//! What the documents show as a configuration is one: a reader who copies it gets what it says.

use std::fs;
use std::path::{Path, PathBuf};

use imds_tests::imds;

/// Documents with configurations in them, between lines of ```` ```toml ```` and ```` ``` ````.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "docs/configuration.md",
    "docs/credentials.md",
    "docs/discovery.md",
];

#[test]
fn configurations_in_documents_are_right() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for document in DOCUMENTS {
        let text = read(&checkout().join(document));
        let blocks = toml_blocks(&text);
        assert!(!blocks.is_empty(), "{document} shows no configuration");
        for (number, block) in blocks.iter().enumerate() {
            let file = dir.path().join(format!("{number}.toml"));
            fs::write(&file, block).expect("the directory takes a file");
            check(&file, &format!("block {number} of {document}"));
        }
    }
}

#[test]
fn configurations_in_examples_are_right() {
    let entries = fs::read_dir(checkout().join("examples")).expect("there are examples");
    let files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    assert!(!files.is_empty(), "no example");
    for file in files {
        check(&file, &file.display().to_string());
    }
}

fn check(file: &Path, what: &str) {
    let output = imds(&["check", "--config", file.to_str().expect("paths are text")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {said}");
}

fn toml_blocks(document: &str) -> Vec<&str> {
    let mut fences = document.split("```toml\n");
    fences.next();
    fences
        .filter_map(|rest| Some(rest.split_once("\n```")?.0))
        .collect()
}

fn checkout() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests is a folder of it").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// docs/pentest.md names a test in each row; whoever renames one learns it here.
#[test]
fn every_test_of_the_pentest_catalogue_exists() {
    let entries = fs::read_dir(checkout().join("tests/tests")).expect("there are tests");
    let sources: Vec<String> = entries
        .map(|entry| read(&entry.expect("it can be listed").path()))
        .collect();
    // Marked as one, at most an attribute and a line away.
    let is_test = |name: &str| {
        sources.iter().any(|source| {
            let head = source.split_once(&format!("fn {name}()"));
            head.is_some_and(|(before, _)| {
                let mut lines = before.lines().rev().take(5);
                lines.any(|line| line == "#[test]")
            })
        })
    };
    let catalogue = read(&checkout().join("docs/pentest.md"));
    let rows: Vec<&str> = catalogue
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| attempt"))
        .collect();
    assert!(rows.len() > 50, "only {} rows", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [_attempt, _expected, named] = cells[..] else {
            panic!("not three cells: {row}");
        };
        let name = named.trim().trim_matches('`');
        assert!(is_test(name), "no test {name}: {row}");
    }
}
