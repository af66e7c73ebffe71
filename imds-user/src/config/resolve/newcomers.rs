//! How ports are found, and which guests may turn up that the file does not name.

use std::sync::Arc;

use toml::Spanned;

use super::super::file::{FileConfig, InstanceEntry};
use super::super::mould::{Mould, Newcomer, Template};
use super::super::{Discovery, Installation, Origin, PortBy, Problem};
use super::{Resolver, line, mac, parsed, problem};

/// Where Docker listens if nothing is said.
const DOCKER_SOCKET: &str = "/run/docker.sock";

/// How the port of an instance is found, and what the instance is called if it has no name.
pub(super) fn port_by(spanned: &Spanned<InstanceEntry>) -> Result<(PortBy, &str), Problem> {
    let entry = spanned.get_ref();
    if let Some(ports) = &entry.ports {
        let message = "`ports` is a key of [[template]]: an instance has one port, `port = \"…\"`";
        return Err(problem(ports, message));
    }
    match (&entry.port, &entry.port_mac, &entry.netns) {
        (Some(name), None, None) => Ok((PortBy::Name(parsed(name)?), name.get_ref())),
        (None, Some(address), None) => Ok((PortBy::Mac(mac(address)?), address.get_ref())),
        (None, None, Some(name)) => Ok((PortBy::Netns(parsed(name)?), name.get_ref())),
        (None, None, None) => {
            let message = "this instance has no port: write `port = \"…\"`, the interface of the host by which its packets come in";
            Err(problem(spanned, message))
        }
        (_, Some(text), _) | (_, None, Some(text)) => Err(problem(
            text,
            "port, port-mac and netns exclude each other: keep one",
        )),
    }
}

/// Which guests may turn up. What a template says is tried on an interface that there never is, so that it is found
/// wrong now and not when the first one comes.
pub(super) fn discovery(
    file: &FileConfig,
    resolver: &mut Resolver<'_>,
    installation: &Installation,
) -> Result<Discovery, Problem> {
    let entry = &file.discovery;
    let docker = match (&entry.docker_socket, entry.docker) {
        (Some(path), Some(false)) => {
            let message = "docker is false, so no socket is used: remove one of the two";
            return Err(problem(path, message));
        }
        (Some(path), _) => Some(resolver.directory.join(line(path)?)),
        (None, Some(true)) => Some(DOCKER_SOCKET.into()),
        (None, Some(false) | None) => None,
    };
    let templates = file
        .template
        .iter()
        .map(|spanned| {
            let template = template(spanned)?;
            let port = PortBy::Index(0);
            let nobody = Newcomer {
                name: "nobody",
                port: &port,
                seed: "nobody",
                origin: Origin::Template,
            };
            resolver.newcomer(&template.entry, &nobody)?;
            Ok(template)
        })
        .collect::<Result<Vec<_>, Problem>>()?;
    Ok(Discovery {
        ports: entry.ports.iter().map(parsed).collect::<Result<_, _>>()?,
        docker,
        mould: Mould {
            host: Arc::clone(&file.host),
            installation: *installation,
            directory: resolver.directory.to_owned(),
            templates: templates.into(),
        },
    })
}

fn template(spanned: &Spanned<Arc<InstanceEntry>>) -> Result<Template, Problem> {
    let entry = spanned.get_ref();
    let of_one = [
        ("name", &entry.name),
        ("port", &entry.port),
        ("port-mac", &entry.port_mac),
        ("netns", &entry.netns),
        ("id", &entry.id),
        ("private-ipv4", &entry.private_ipv4),
        ("public-ipv4", &entry.public_ipv4),
        ("mac", &entry.mac),
        ("interface-id", &entry.interface_id),
    ];
    for (key, value) in of_one {
        if let Some(text) = value {
            let message = format!(
                "a template makes many instances, and `{key}` can be only one's: remove it"
            );
            return Err(problem(text, message));
        }
    }
    let Some(ports) = entry
        .ports
        .as_ref()
        .filter(|ports| !ports.get_ref().is_empty())
    else {
        let message = "this template has no ports: write `ports = [\"vnet*\"]`, patterns of the interfaces that get such an instance";
        return Err(problem(spanned, message));
    };
    Ok(Template {
        ports: ports
            .get_ref()
            .iter()
            .map(parsed)
            .collect::<Result<_, _>>()?,
        entry: Arc::clone(entry),
    })
}
