//! An instance as it was last made known.

use serde::{Deserialize, Serialize};

use super::{Instance, Limits, UnixSeconds};

/// One state of an instance, and since when it is in force. Replaced whole at every change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// When this state was made known; what `Last-Modified` tells.
    pub at: UnixSeconds,
    /// What its guest may take.
    pub limits: Limits,
    /// The instance.
    pub instance: Instance,
}
