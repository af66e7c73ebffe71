//! What is said over the launcher's socket, a line of JSON each way. The socket is root's alone, as the daemon's is.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::Spec;
use super::{Running, State};
use crate::instance::InstanceId;

/// The longest order.
pub const ORDER_BYTES_MAX: usize = 64 << 10;

/// What the launcher is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// See [`super::Launcher::start`].
    Launch {
        /// What to launch.
        spec: Spec,
    },
    /// Start it as it was ordered before.
    Start {
        /// Which instance.
        id: InstanceId,
    },
    /// See [`super::Launcher::stop`].
    Stop {
        /// Which instance.
        id: InstanceId,
    },
    /// Stop it and start it as it was.
    Reboot {
        /// Which instance.
        id: InstanceId,
    },
    /// See [`super::Launcher::terminate`].
    Terminate {
        /// Which instance.
        id: InstanceId,
    },
    /// See [`super::Launcher::state`].
    State {
        /// Which instance.
        id: InstanceId,
    },
    /// Every guest.
    List {},
    /// Every image that a guest can be made of, besides the host's own programs.
    Images {},
}

/// What the launcher answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The guest runs.
    Running(Running),
    /// It is done, and there is no more to say.
    Done,
    /// What a guest is doing.
    State(State),
    /// What each guest is doing.
    Guests(Vec<(InstanceId, State)>),
    /// What can be launched.
    Images(Vec<LocalImage>),
    /// It is not done.
    Failed(String),
}

/// A local image of Docker's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalImage {
    /// Docker's id of what is in it.
    pub id: String,
    /// The first of its names: `web:1`.
    pub name: String,
}

/// Where the launcher of a state directory listens.
#[must_use]
pub fn socket_in(state_dir: &Path) -> PathBuf {
    state_dir.join("launcher.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_are_lines_that_say_what_they_are() {
        let id: InstanceId = "i-0123456789abcdef0".parse().unwrap();
        let order = serde_json::to_string(&Order::Stop { id }).unwrap();
        assert_eq!(order, r#"{"order":"stop","id":"i-0123456789abcdef0"}"#);
        assert_eq!(
            serde_json::from_str::<Order>(&order).unwrap(),
            Order::Stop { id }
        );
        for wrong in [
            r#"{"order":"stop"}"#,
            r#"{"order":"stop","id":"../x"}"#,
            r#"{"order":"exec","id":"i-0123456789abcdef0"}"#,
            r#"{"order":"list","id":"i-0123456789abcdef0"}"#,
        ] {
            assert!(serde_json::from_str::<Order>(wrong).is_err(), "{wrong}");
        }
        for answer in [
            Answer::Done,
            Answer::Failed("no".into()),
            Answer::State(State::Stopped),
            Answer::Guests(vec![(
                id,
                State::Running(Running {
                    port: "imdsg0".into(),
                    pid: 7,
                }),
            )]),
        ] {
            let line = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), answer);
        }
    }
}
