//! Guests that are containers of Docker: an image of its own, and Docker's care for what runs in it.
//!
//! A container is made without a network and is given the cable of any other guest, so that its port is known before it
//! exists and shut until it is served. What is in it begins without a network, and has one a moment later. It is known to
//! Docker by the name of its guest's namespace, and has no label of ours: it is not one for discovery.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::json;

use super::door::Door;
use super::order::LocalImage;
use super::plan::{Image, Names, Spec};
use super::record::Record;
use super::{LaunchError, Launcher, Running, State, cable, inside, system};
use crate::discovery::docker::api::{Api, ApiError, encoded};
use crate::instance::InstanceId;
use crate::netns::NetNs;

/// How long what is in a container has to end by itself, as with other guests.
const SHUTDOWN_SECONDS: u64 = super::first::SHUTDOWN_WITHIN.as_secs();

/// HTTP's words of Docker.
const CREATED: u16 = 201;
const NO_CONTENT: u16 = 204;
const NOT_MODIFIED: u16 = 304;
const NOT_FOUND: u16 = 404;

/// Whoever launches containers for a state directory.
#[derive(Debug)]
pub struct Containers {
    state_dir: PathBuf,
    socket: PathBuf,
    api: Api,
    door: Door,
}

/// The answer to `GET /containers/NAME/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    state: Condition,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Condition {
    running: bool,
    pid: u32,
}

/// One of the answer to `GET /images/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

impl Containers {
    /// By the Docker daemon behind this socket. The state directory's path must be canonical.
    #[must_use]
    pub fn new(state_dir: PathBuf, socket: PathBuf, door: Door) -> Self {
        Self {
            state_dir,
            api: Api::new(socket.clone()),
            socket,
            door,
        }
    }

    fn names(&self, id: InstanceId) -> Names {
        Names::of(&self.state_dir, id)
    }

    async fn make(&self, names: &Names, spec: &Spec, image: &str) -> Result<Running, LaunchError> {
        if self.inspect(names).await?.is_none() {
            self.create(names, spec, image).await?;
        }
        let path = format!("{}/start", path_of(names));
        self.order("POST", &path, &[NO_CONTENT, NOT_MODIFIED])
            .await?;
        let condition = self.inspect(names).await?.filter(|state| state.running);
        let condition = condition
            .ok_or_else(|| LaunchError::First("its container ended at once".to_owned()))?;
        let netns = PathBuf::from(format!("/proc/{}/ns/net", condition.pid));
        NetNs::name_path(&netns, &names.netns)?;
        cable::lay(names, spec).await?;
        self.door.served(&names.port).await?;
        cable::open(names, spec).await?;
        Ok(Running {
            port: names.port.clone(),
            pid: condition.pid,
        })
    }

    async fn create(&self, names: &Names, spec: &Spec, image: &str) -> Result<(), LaunchError> {
        let path = format!("/containers/create?name={}", encoded(&names.netns));
        let order = order_of(spec, image).to_string();
        match self.api.order("POST", &path, order.as_bytes()).await {
            Ok(CREATED) => Ok(()),
            Ok(NOT_FOUND) => Err(LaunchError::Image(image.to_owned())),
            Ok(status) => Err(refused(&path, status)),
            Err(error) => Err(trouble(&error)),
        }
    }

    /// The images that have a name. Without Docker there are none.
    pub(super) async fn images(&self) -> Vec<LocalImage> {
        let listed: Result<Option<Vec<Listed>>, _> = self.api.get("/images/json").await;
        match listed {
            Ok(listed) => named(listed.unwrap_or_default()),
            Err(error) => {
                tracing::debug!("images: {error}");
                Vec::new()
            }
        }
    }

    async fn inspect(&self, names: &Names) -> Result<Option<Condition>, LaunchError> {
        let path = format!("{}/json", path_of(names));
        let inspected: Option<Inspected> =
            self.api.get(&path).await.map_err(|error| trouble(&error))?;
        Ok(inspected.map(|inspected| inspected.state))
    }

    async fn order(&self, method: &str, path: &str, fine: &[u16]) -> Result<(), LaunchError> {
        let status = self.api.order(method, path, &[]).await;
        match status.map_err(|error| trouble(&error))? {
            status if fine.contains(&status) => Ok(()),
            status => Err(refused(path, status)),
        }
    }
}

impl Launcher for Containers {
    async fn start(&self, spec: &Spec) -> Result<Running, LaunchError> {
        let Image::Docker(image) = &spec.image else {
            return Err(LaunchError::Image("host".to_owned()));
        };
        let names = self.names(spec.id);
        let was_there = match self.state(spec.id).await? {
            State::Running(_) => return Err(LaunchError::Runs(spec.id)),
            State::Stopped => true,
            State::Absent => false,
        };
        Record::note(&self.state_dir, &names, spec, Some(&self.socket))?;
        // Something may be left of a start or an end that was interrupted.
        let cleared = if was_there {
            self.stop(spec.id).await
        } else {
            self.remove(&names).await
        };
        let outcome = match cleared {
            Ok(()) => self.make(&names, spec, image).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(running) => Ok(running),
            Err(error) => {
                let undone = if was_there {
                    self.stop(spec.id).await
                } else {
                    self.terminate(spec.id).await
                };
                if let Err(second) = undone {
                    tracing::warn!("guest {}: {second}", spec.id);
                }
                Err(error)
            }
        }
    }

    async fn stop(&self, id: InstanceId) -> Result<(), LaunchError> {
        let names = self.names(id);
        let path = format!("{}/stop?t={SHUTDOWN_SECONDS}", path_of(&names));
        self.order("POST", &path, &[NO_CONTENT, NOT_MODIFIED, NOT_FOUND])
            .await?;
        Ok(cable::remove(&names).await?)
    }

    async fn terminate(&self, id: InstanceId) -> Result<(), LaunchError> {
        let names = self.names(id);
        self.remove(&names).await?;
        Ok(Record::remove(&self.state_dir, &names)?)
    }

    async fn state(&self, id: InstanceId) -> Result<State, LaunchError> {
        let names = self.names(id);
        if Record::read(&names)?.is_none() {
            return Ok(State::Absent);
        }
        Ok(match self.inspect(&names).await? {
            Some(condition) if condition.running => State::Running(Running {
                port: names.port,
                pid: condition.pid,
            }),
            Some(_) | None => State::Stopped,
        })
    }

    fn exec(
        &self,
        id: InstanceId,
        program: OsString,
        args: Vec<OsString>,
    ) -> Result<u8, LaunchError> {
        exec(&self.socket, &self.names(id), program, args)
    }
}

impl Containers {
    async fn remove(&self, names: &Names) -> Result<(), LaunchError> {
        let path = format!("{}?force=1&v=1", path_of(names));
        self.order("DELETE", &path, &[NO_CONTENT, NOT_FOUND])
            .await?;
        Ok(cable::remove(names).await?)
    }
}

/// Runs a command in a container by Docker's own command, which has a way for it.
pub(super) fn exec(
    socket: &Path,
    names: &Names,
    program: OsString,
    args: Vec<OsString>,
) -> Result<u8, LaunchError> {
    let mut command = docker(socket);
    command.args(["exec", "--interactive", &names.netns]);
    let status = command.arg(program).args(args).status();
    Ok(inside::code_of(status.map_err(system("run `docker`"))?))
}

/// Shows what a container printed, to standard output and error.
pub(super) fn logs(socket: &Path, names: &Names, follow: bool) -> Result<u8, LaunchError> {
    let mut command = docker(socket);
    command.arg("logs");
    if follow {
        command.arg("--follow");
    }
    let status = command.arg(&names.netns).status();
    Ok(inside::code_of(status.map_err(system("run `docker`"))?))
}

fn docker(socket: &Path) -> Command {
    let mut host = OsString::from("unix://");
    host.push(socket);
    let mut command = Command::new("docker");
    command.arg("--host").arg(host);
    command
}

/// Images whose name was given to another have none, or one that says so.
fn named(listed: Vec<Listed>) -> Vec<LocalImage> {
    let image = |image: Listed| {
        let mut names = image.repo_tags.unwrap_or_default();
        names.retain(|name| !name.contains("<none>"));
        let name = names.into_iter().min()?;
        Some(LocalImage { id: image.id, name })
    };
    let mut images: Vec<_> = listed.into_iter().filter_map(image).collect();
    images.sort_by(|one, other| one.name.cmp(&other.name));
    images
}

/// What Docker is told of a container.
fn order_of(spec: &Spec, image: &str) -> serde_json::Value {
    json!({
        "Image": image,
        "Hostname": spec.hostname,
        "HostConfig": {
            "NetworkMode": "none",
            "Memory": spec.bounds.memory_bytes,
            "MemorySwap": spec.bounds.memory_bytes,
            "PidsLimit": spec.bounds.pids,
            "SecurityOpt": ["no-new-privileges"],
        },
    })
}

fn path_of(names: &Names) -> String {
    format!("/containers/{}", encoded(&names.netns))
}

fn trouble(error: &ApiError) -> LaunchError {
    LaunchError::Docker(error.to_string())
}

fn refused(path: &str, status: u16) -> LaunchError {
    LaunchError::Docker(format!("docker: {path}: status {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::MacAddress;
    use crate::launch::plan::Bounds;

    #[test]
    fn a_container_begins_without_a_network_and_has_bounds() {
        let spec = Spec {
            id: "i-0123456789abcdef0".parse().unwrap(),
            image: Image::Docker("web:1".into()),
            hostname: "web".into(),
            ipv4: [172, 31, 17, 9].into(),
            subnet: "172.31.16.0/20".parse().unwrap(),
            mac: MacAddress([6, 0, 0, 0, 0, 1]),
            bounds: Bounds {
                memory_bytes: 1 << 20,
                pids: 7,
                volume_bytes: 0,
            },
        };
        let expected = r#"{"HostConfig":{"Memory":1048576,"MemorySwap":1048576,"NetworkMode":"none","PidsLimit":7,"SecurityOpt":["no-new-privileges"]},"Hostname":"web","Image":"web:1"}"#;
        assert_eq!(order_of(&spec, "web:1").to_string(), expected);
    }

    #[test]
    fn images_are_known_by_the_first_of_their_names() {
        let text = r#"[
            {"Id":"sha256:2","RepoTags":["web:2","web:latest"],"Size":1},
            {"Id":"sha256:3","RepoTags":["<none>:<none>"]},
            {"Id":"sha256:4","RepoTags":null},
            {"Id":"sha256:1","RepoTags":["web:latest-1","db:7"]}
        ]"#;
        let images = named(serde_json::from_str(text).unwrap());
        let shown: Vec<_> = images
            .iter()
            .map(|image| (&*image.id, &*image.name))
            .collect();
        assert_eq!(shown, [("sha256:1", "db:7"), ("sha256:2", "web:2")]);
    }

    #[test]
    fn what_docker_says_of_a_container_is_whether_it_runs() {
        let text = r#"{"Id":"0af9","State":{"Status":"running","Running":true,"Paused":false,"Pid":4711,"ExitCode":0}}"#;
        let inspected: Inspected = serde_json::from_str(text).unwrap();
        assert!(inspected.state.running);
        assert_eq!(inspected.state.pid, 4711);
    }
}
