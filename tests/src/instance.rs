//! The `[[instance]]` part of a configuration file, as text that a test can change.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What the configuration file says of one instance.
///
/// Values are TOML as it is written, so that a test may also write what is wrong.
#[derive(Clone, Debug)]
pub struct InstanceText {
    name: String,
    keys: Vec<(String, String)>,
    /// Further keys, as they are.
    plain: String,
    options: Vec<(String, String)>,
    tables: String,
}

impl InstanceText {
    /// An instance of this name, at this port, with this id.
    #[must_use]
    pub fn new(name: &str, port: &str, id: &str) -> Self {
        let mut text = Self {
            name: name.to_owned(),
            keys: Vec::new(),
            plain: String::new(),
            options: Vec::new(),
            tables: String::new(),
        };
        text.key("name", &quoted(name))
            .key("port", &quoted(port))
            .key("id", &quoted(id));
        text
    }

    /// What commands call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets or replaces a key of the instance.
    pub fn key(&mut self, key: &str, toml: &str) -> &mut Self {
        set(&mut self.keys, key, toml);
        self
    }

    /// Sets or replaces a metadata option.
    pub fn option(&mut self, key: &str, toml: &str) -> &mut Self {
        set(&mut self.options, key, toml);
        self
    }

    /// Sets the user data.
    pub fn user_data(&mut self, bytes: &[u8]) -> &mut Self {
        self.key("user-data-base64", &quoted(&STANDARD.encode(bytes)))
    }

    /// Adds whole tables, such as `[instance.role]`, as they are.
    pub fn tables(&mut self, toml: &str) -> &mut Self {
        self.tables.push_str(toml);
        self.tables.push('\n');
        self
    }

    /// Replaces all tables.
    pub fn set_tables(&mut self, toml: &str) -> &mut Self {
        self.tables.clear();
        self.tables(toml)
    }

    /// Adds keys and tables, in this order, as they are.
    pub fn toml(&mut self, toml: &str) -> &mut Self {
        let (keys, tables) = toml.split_at(toml.find("\n[").unwrap_or(toml.len()));
        self.plain.push_str(keys);
        self.plain.push('\n');
        self.tables(tables)
    }

    /// The TOML of it all.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let options = match self.options.is_empty() {
            true => String::new(),
            false => format!("[instance.metadata-options]\n{}", lines(&self.options)),
        };
        format!(
            "[[instance]]\n{}{}{options}{}",
            lines(&self.keys),
            self.plain,
            self.tables
        )
    }
}

/// A TOML string. Test values need no more escapes than Rust's `Debug` has in common with TOML.
pub(crate) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn set(list: &mut Vec<(String, String)>, key: &str, toml: &str) {
    list.retain(|(given, _)| given != key);
    list.push((key.to_owned(), toml.to_owned()));
}

fn lines(pairs: &[(String, String)]) -> String {
    pairs
        .iter()
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect()
}
