//! What follows from an instance type's name. (EC2 User Guide, "Amazon EC2 instance type naming conventions".)

use super::details::{Architecture, System};

/// Families of the Xen era. Metal sizes of theirs run on Nitro.
const XEN_FAMILIES: [&str; 27] = [
    "c1", "c3", "c4", "cc2", "cr1", "d2", "f1", "g2", "g3", "g3s", "h1", "hs1", "i2", "i3", "m1",
    "m2", "m3", "m4", "p2", "p3", "r3", "r4", "t1", "t2", "x1", "x1e", "cg1",
];

/// The architecture: ARM if `g` (for Graviton) is among the letters behind the generation, as in `t4g` and `c7gn`, and for
/// the first such family, `a1`; x86 otherwise.
#[must_use]
pub fn architecture(instance_type: &str) -> Architecture {
    let family = family(instance_type);
    let attributes = family
        .trim_start_matches(|c: char| !c.is_ascii_digit())
        .trim_start_matches(|c: char| c.is_ascii_digit());
    if family == "a1" || attributes.contains('g') {
        Architecture::Arm64
    } else {
        Architecture::X86_64
    }
}

/// The hypervisor.
#[must_use]
pub fn system(instance_type: &str) -> System {
    let is_metal = instance_type.contains(".metal");
    if !is_metal && XEN_FAMILIES.contains(&family(instance_type)) {
        System::Xen
    } else {
        System::Nitro
    }
}

fn family(instance_type: &str) -> &str {
    instance_type
        .split_once('.')
        .map_or(instance_type, |(family, _)| family)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(instance_type: &str, expected_architecture: &str, expected_system: &str) {
        assert_eq!(
            architecture(instance_type).as_str(),
            expected_architecture,
            "{instance_type}"
        );
        assert_eq!(
            system(instance_type).as_str(),
            expected_system,
            "{instance_type}"
        );
    }

    #[test]
    fn a_type_says_architecture_and_hypervisor() {
        check("t3.micro", "x86_64", "nitro");
        check("t2.micro", "x86_64", "xen");
        check("m4.large", "x86_64", "xen");
        check("i3.metal", "x86_64", "nitro");
        check("t4g.nano", "arm64", "nitro");
        check("a1.medium", "arm64", "nitro");
        check("c7gn.xlarge", "arm64", "nitro");
        check("im4gn.large", "arm64", "nitro");
        check("g5g.xlarge", "arm64", "nitro");
        check("g4dn.xlarge", "x86_64", "nitro");
        check("u-6tb1.metal", "x86_64", "nitro");
        check("mac1.metal", "x86_64", "nitro");
        check("anything", "x86_64", "nitro");
    }
}
