//! Instance types: what follows from their names. (EC2 User Guide, "Amazon EC2 instance type naming conventions".)

use std::collections::BTreeSet;

use super::filter::{Column, Columns, Filters};
use super::page::Page;
use crate::api::call::{Call, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::xml::Xml;
use crate::config::nearest::nearest;
use crate::instance::details::System;
use crate::instance::instance_type::{architecture, system};

/// The most types that one call may name.
const NAMES_MAX: usize = 100;

/// What is listed when nothing is asked for: a choice of what people launch. Any type whose name is well formed is known.
const LISTED: &[&str] = &[
    "a1.medium",
    "c5.large",
    "c5.xlarge",
    "c6g.large",
    "c6i.large",
    "c7g.large",
    "m1.small",
    "m5.large",
    "m5.xlarge",
    "m6g.large",
    "m6i.large",
    "m7g.large",
    "r5.large",
    "r6g.large",
    "t2.micro",
    "t2.nano",
    "t2.small",
    "t2.medium",
    "t3.large",
    "t3.medium",
    "t3.micro",
    "t3.nano",
    "t3.small",
    "t3a.micro",
    "t4g.micro",
    "t4g.nano",
    "t4g.small",
];

/// A type: its family, and how many processors and how much memory its size has.
struct Type {
    name: String,
    vcpus: u32,
    memory_mib: u64,
}

impl Type {
    /// `None` if it has no type's name. Sizes are those of the general families; that memory comes in gigabytes a processor by
    /// the family's letter is true of most and a guess for the rest.
    fn of(name: &str) -> Option<Self> {
        let (family, size) = name.split_once('.')?;
        let letters = family.chars().take_while(char::is_ascii_lowercase).count();
        let is_fit = |text: &str| {
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !text.is_empty() && text.chars().all(is_plain)
        };
        let has_generation =
            family[letters..].starts_with(|c: char| c.is_ascii_digit() || c == '-');
        if letters == 0 || !has_generation || !is_fit(family) || name.len() > 32 {
            return None;
        }
        let is_burstable = is_burstable(name);
        let vcpus = match size {
            "nano" | "micro" | "small" | "medium" if is_burstable && !family.starts_with("t2") => 2,
            "medium" if is_burstable => 2,
            "nano" | "micro" | "small" | "medium" => 1,
            "large" => 2,
            "xlarge" => 4,
            "metal" => 96,
            size => match size.strip_suffix("xlarge") {
                Some(number) => {
                    4 * number
                        .parse::<u32>()
                        .ok()
                        .filter(|n| (2..=224).contains(n))?
                }
                None => size
                    .strip_prefix("metal-")?
                    .strip_suffix("xl")?
                    .parse::<u32>()
                    .ok()?
                    .checked_mul(4)?,
            },
        };
        let memory_mib = if is_burstable {
            burstable_memory_mib(size)?
        } else {
            u64::from(vcpus) * gib_per_vcpu(family) * 1024
        };
        Some(Self {
            name: name.to_owned(),
            vcpus,
            memory_mib,
        })
    }
}

fn burstable_memory_mib(size: &str) -> Option<u64> {
    Some(match size {
        "nano" => 512,
        "micro" => 1024,
        "small" => 2048,
        "medium" => 4096,
        "large" => 8192,
        "xlarge" => 16_384,
        "2xlarge" => 32_768,
        _ => return None,
    })
}

fn gib_per_vcpu(family: &str) -> u64 {
    match family.chars().next() {
        Some('c') => 2,
        Some('r' | 'i') => 8,
        Some('x' | 'u') => 16,
        _ => 4,
    }
}

/// How many processors and how many MiB of memory a type has, if it is one.
#[must_use]
pub fn size(name: &str) -> Option<(u32, u64)> {
    Type::of(name).map(|t| (t.vcpus, t.memory_mib))
}

/// Whether it earns CPU credits.
pub(super) fn is_burstable(name: &str) -> bool {
    let family = name.split('.').next().unwrap_or_default();
    matches!(family, "t2" | "t3" | "t3a" | "t4g")
}

/// Refuses what is no type.
pub(super) fn check(name: &str) -> Result<(), Refusal> {
    Type::of(name).map(drop).ok_or_else(|| no_types(&[name]))
}

/// A type that may be meant by a name that is none.
pub(super) fn near(name: &str) -> Option<&'static str> {
    nearest(name, LISTED)
}

fn no_types(names: &[&str]) -> Refusal {
    Refusal::new(
        Code::InvalidInstanceType,
        format!(
            "The following supplied instance types do not exist: [{}]",
            names.join(", ")
        ),
    )
}

pub(super) fn describe(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let names = call.params.texts("InstanceType")?;
    if names.len() > NAMES_MAX {
        let message = format!("At most {NAMES_MAX} instance types may be specified");
        return Err(Refusal::new(Code::InvalidParameterValue, message));
    }
    let wrong: Vec<_> = names
        .iter()
        .copied()
        .filter(|name| Type::of(name).is_none())
        .collect();
    if !wrong.is_empty() {
        return Err(no_types(&wrong));
    }
    let by_name: &[(&'static str, Column<Type>)] = &[
        ("bare-metal", |t| vec![is_metal(t).to_string()]),
        ("burstable-performance-supported", |t| {
            vec![is_burstable(&t.name).to_string()]
        }),
        ("current-generation", |t| vec![is_current(t).to_string()]),
        ("hypervisor", |t| {
            hypervisor(t).map(str::to_owned).into_iter().collect()
        }),
        ("instance-type", |t| vec![t.name.clone()]),
        ("memory-info.size-in-mib", |t| {
            vec![t.memory_mib.to_string()]
        }),
        ("processor-info.supported-architecture", |t| {
            vec![architecture(&t.name).as_str().to_owned()]
        }),
        ("vcpu-info.default-vcpus", |t| vec![t.vcpus.to_string()]),
    ];
    let tags = None;
    let filters = Filters::read(&call.params, &Columns { by_name, tags })?;
    let page = match call.params.at("MaxResults").is_given() {
        true => Page::read(&call.params, 5..=100)?,
        false if call.params.at("NextToken").is_given() => Page::read(&call.params, 5..=100)?,
        false => Page::all(),
    };
    let names: BTreeSet<_> = match names.is_empty() {
        true => LISTED.iter().copied().collect(),
        false => names.into_iter().collect(),
    };
    let types = names.into_iter().filter_map(Type::of);
    let part = page.cut(types.filter(|t| filters.hold(t)), |t| t.name.clone());
    Ok(call.ec2_reply(|xml| {
        xml.list("instanceTypeSet", &part.items, write);
        xml.el_if("nextToken", part.next_token.as_deref());
    }))
}

/// Terraform's provider needs `processorInfo` and `supportedVirtualizationTypes`: without them it ends in a panic when it plans
/// another type.
fn write(xml: &mut Xml, t: &Type) {
    xml.el("instanceType", &t.name)
        .el("currentGeneration", is_current(t))
        .el("freeTierEligible", false)
        .texts("supportedUsageClasses", ["on-demand", "spot"])
        .texts("supportedRootDeviceTypes", ["ebs"])
        .texts("supportedVirtualizationTypes", ["hvm"])
        .el("bareMetal", is_metal(t))
        .el_if("hypervisor", hypervisor(t));
    xml.within("processorInfo", |xml| {
        xml.texts("supportedArchitectures", [architecture(&t.name).as_str()]);
    });
    xml.within("vCpuInfo", |xml| {
        xml.el("defaultVCpus", t.vcpus);
    });
    xml.within("memoryInfo", |xml| {
        xml.el("sizeInMiB", t.memory_mib);
    });
    xml.el("instanceStorageSupported", false)
        .el("hibernationSupported", false)
        .el("burstablePerformanceSupported", is_burstable(&t.name))
        .el("dedicatedHostsSupported", false)
        .el("autoRecoverySupported", false);
}

fn is_metal(t: &Type) -> bool {
    t.name.contains(".metal")
}

/// Families of the Xen era are of a previous generation, but for T2.
fn is_current(t: &Type) -> bool {
    system(&t.name) == System::Nitro || t.name.starts_with("t2.")
}

/// Bare metal has none.
fn hypervisor(t: &Type) -> Option<&'static str> {
    if is_metal(t) {
        return None;
    }
    Some(match system(&t.name) {
        System::Nitro => "nitro",
        System::Xen | System::XenOnNitro => "xen",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_type(name: &str, expected: Option<(u32, u64)>) {
        let size = Type::of(name).map(|t| (t.vcpus, t.memory_mib));
        assert_eq!(size, expected, "{name}");
    }

    #[test]
    fn a_name_that_is_none_is_near_to_one() {
        assert_eq!(near("t3.mcro"), Some("t3.micro"));
        assert_eq!(near("T3-Micro"), Some("t3.micro"));
        assert_eq!(near("something"), None);
    }

    #[test]
    fn a_type_says_how_large_it_is() {
        check_type("t3.micro", Some((2, 1024)));
        check_type("t2.micro", Some((1, 1024)));
        check_type("t2.medium", Some((2, 4096)));
        check_type("t4g.nano", Some((2, 512)));
        check_type("m5.large", Some((2, 8192)));
        check_type("c5.xlarge", Some((4, 8192)));
        check_type("r5.4xlarge", Some((16, 131_072)));
        check_type("m5.24xlarge", Some((96, 393_216)));
        check_type("c6g.medium", Some((1, 2048)));
    }

    #[test]
    fn what_is_no_type_is_none() {
        for name in [
            "",
            "t3",
            "t3.",
            ".micro",
            "3.large",
            "t3.huge",
            "t3.24xlarge",
            "m5.1xlarge",
            "m5.xxlarge",
            "m5.99999xlarge",
            "M5.large",
            "m.large",
            "m5é.large",
            "m5.large.large",
            "m5.metal-99999999999xl",
        ] {
            check_type(name, None);
        }
    }

    #[test]
    fn every_listed_type_is_one() {
        for name in LISTED {
            assert!(Type::of(name).is_some(), "{name}");
        }
    }
}
