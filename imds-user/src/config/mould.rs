//! What instances are made from that turn up while the daemon runs: a template of the file, or keys and values that a
//! person or a container's labels give. They go through the same checks as the file's own instances.

use std::path::PathBuf;
use std::sync::Arc;

use super::file::{HostEntry, InstanceEntry};
use super::made_up::MadeUp;
use super::pairs::{Pairs, PairsError};
use super::resolve::{Resolver, host};
use super::{Files, Guest, Installation, Origin, Pattern, PortBy, Problem};

/// What the file says of instances that it does not name.
#[derive(Clone, Debug)]
pub struct Mould {
    pub(super) host: Arc<HostEntry>,
    pub(super) installation: Installation,
    pub(super) directory: PathBuf,
    pub(super) templates: Arc<[Template]>,
}

/// `[[template]]`: what an interface gets that matches.
#[derive(Debug)]
pub struct Template {
    /// Patterns of interfaces.
    pub(super) ports: Box<[Pattern]>,
    pub(super) entry: Arc<InstanceEntry>,
}

/// Who turned up.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer<'a> {
    /// What commands call it, unless its keys say otherwise.
    pub name: &'a str,
    /// How its port is found.
    pub port: &'a PortBy,
    /// What nobody else has: its made-up values follow from it.
    pub seed: &'a str,
    /// From where it is known.
    pub origin: Origin,
}

impl Mould {
    /// The first template that has a pattern for this interface.
    #[must_use]
    pub fn template_for(&self, interface: &str) -> Option<&Template> {
        let has_pattern = |template: &&Template| {
            let mut patterns = template.ports.iter();
            patterns.any(|pattern| pattern.matches(interface))
        };
        self.templates.iter().find(has_pattern)
    }

    /// An instance as a template has it.
    ///
    /// # Errors
    /// Why not, for people: a file of user data that cannot be read any more, for example.
    pub fn from_template(
        &self,
        template: &Template,
        newcomer: &Newcomer<'_>,
        files: &dyn Files,
    ) -> Result<Guest, String> {
        self.guest(&template.entry, newcomer, files)
            .map_err(|problem| problem.message)
    }

    /// An instance as keys and values have it.
    ///
    /// # Errors
    /// The key that is wrong, and what would be right.
    pub fn from_pairs(
        &self,
        pairs: &Pairs,
        newcomer: &Newcomer<'_>,
        files: &dyn Files,
    ) -> Result<Guest, PairsError> {
        pairs.resolved(|entry| self.guest(entry, newcomer, files))
    }

    fn guest(
        &self,
        entry: &InstanceEntry,
        newcomer: &Newcomer<'_>,
        files: &dyn Files,
    ) -> Result<Guest, Problem> {
        let host = host(&self.host, MadeUp::of(&self.installation))?;
        let (installation, directory) = (&self.installation, &self.directory);
        Resolver::of(&self.host, &host, installation, directory, files)?.newcomer(entry, newcomer)
    }
}
