//! What few instances have: kept behind one pointer so that the others do not pay for it.

use serde::{Deserialize, Serialize};

use super::id::{DedicatedHostId, KernelId, RamdiskId};
use super::{AccountId, ImageId, Switch, UnixSeconds, Zone};

/// Rare facts of an instance. Every field's empty value means what EC2 shows when there is nothing to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// Owner, if not the host's account.
    pub account_id: Option<AccountId>,
    /// Zone, if not the host's.
    pub zone: Option<Zone>,
    /// Private host name, if not the one that follows from address and zone.
    pub hostname: Option<Box<str>>,
    /// Architecture, if it does not follow from the instance type.
    pub architecture: Option<Architecture>,
    /// `system`, if it does not follow from the instance type.
    pub system: Option<System>,
    /// `profile`, if not the default one of the image's kind.
    pub profile: Option<Box<str>>,
    /// How it is paid for.
    pub life_cycle: LifeCycle,
    /// `instance-action`.
    pub instance_action: InstanceAction,
    /// `ami-manifest-path`, for images that have a manifest.
    pub manifest_path: Option<Box<str>>,
    /// `ancestor-ami-ids`.
    pub ancestor_ami_ids: Vec<ImageId>,
    /// `kernel-id`, for paravirtual images.
    pub kernel_id: Option<KernelId>,
    /// `ramdisk-id`, for paravirtual images.
    pub ramdisk_id: Option<RamdiskId>,
    /// `product-codes`, of Marketplace images.
    pub product_codes: Vec<Box<str>>,
    /// `billingProducts` of the identity document.
    pub billing_products: Vec<Box<str>>,
    /// `block-device-mapping/`: names and devices, sorted bytewise by name. Empty: `ami` and `root` alone, which are there in
    /// any case.
    pub block_devices: Vec<BlockDevice>,
    /// `fws/instance-monitoring`, if detailed monitoring is spoken of at all.
    pub monitoring: Option<Switch>,
    /// `hibernation/configured`, if type and image support it.
    pub hibernation_configured: Option<bool>,
    /// `autoscaling/target-lifecycle-state`, in an Auto Scaling group.
    pub target_lifecycle_state: Option<TargetLifecycleState>,
    /// `placement/group-name`.
    pub placement_group: Option<Box<str>>,
    /// `placement/partition-number`.
    pub partition_number: Option<u8>,
    /// `placement/host-id`.
    pub dedicated_host_id: Option<DedicatedHostId>,
    /// Scheduled and past maintenance.
    pub maintenance_events: Vec<MaintenanceEvent>,
    /// When a rebalance recommendation was issued.
    pub rebalance_notice: Option<UnixSeconds>,
    /// The announced interruption of a Spot Instance.
    pub spot_interruption: Option<SpotInterruption>,
    /// EC2 Instance Connect.
    pub managed_ssh_keys: Option<ManagedSshKeys>,
}

impl Details {
    /// Nothing rare.
    pub const NONE: Self = Self {
        account_id: None,
        zone: None,
        hostname: None,
        architecture: None,
        system: None,
        profile: None,
        life_cycle: LifeCycle::OnDemand,
        instance_action: InstanceAction::None,
        manifest_path: None,
        ancestor_ami_ids: Vec::new(),
        kernel_id: None,
        ramdisk_id: None,
        product_codes: Vec::new(),
        billing_products: Vec::new(),
        block_devices: Vec::new(),
        monitoring: None,
        hibernation_configured: None,
        target_lifecycle_state: None,
        placement_group: None,
        partition_number: None,
        dedicated_host_id: None,
        maintenance_events: Vec::new(),
        rebalance_notice: None,
        spot_interruption: None,
        managed_ssh_keys: None,
    };
}

/// Defines an enum whose values have a text in EC2's words.
macro_rules! worded {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// EC2's word for it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

worded!(
    /// `architecture` of the identity document.
    Architecture {
        /// 32-bit x86.
        I386 = "i386",
        /// 64-bit x86.
        X86_64 = "x86_64",
        /// 64-bit ARM.
        Arm64 = "arm64",
    }
);

worded!(
    /// The hypervisor, as `system` names it.
    System {
        /// Nitro.
        Nitro = "nitro",
        /// A type of the Xen era on Nitro.
        XenOnNitro = "xen-on-nitro",
        /// Xen.
        Xen = "xen",
    }
);

worded!(
    /// `instance-life-cycle`.
    #[derive(Default)]
    LifeCycle {
        /// Paid as used.
        #[default]
        OnDemand = "on-demand",
        /// A Spot Instance.
        Spot = "spot",
        /// A Scheduled Instance.
        Scheduled = "scheduled",
        /// In a Capacity Block.
        CapacityBlock = "capacity-block",
        /// In an interruptible Capacity Reservation.
        InterruptibleCapacityReservation = "interruptible-capacity-reservation",
    }
);

worded!(
    /// `instance-action`: whether it should reboot in preparation for bundling.
    #[derive(Default)]
    InstanceAction {
        /// Nothing to do.
        #[default]
        None = "none",
        /// Shutting down.
        Shutdown = "shutdown",
        /// To be bundled.
        BundlePending = "bundle-pending",
    }
);

worded!(
    /// `autoscaling/target-lifecycle-state`.
    TargetLifecycleState {
        /// Leaving the group, to live on.
        Detached = "Detached",
        /// In service.
        InService = "InService",
        /// On standby.
        Standby = "Standby",
        /// To be terminated.
        Terminated = "Terminated",
        /// Hibernated in a warm pool.
        WarmedHibernated = "Warmed:Hibernated",
        /// Running in a warm pool.
        WarmedRunning = "Warmed:Running",
        /// Stopped in a warm pool.
        WarmedStopped = "Warmed:Stopped",
        /// Terminated from a warm pool.
        WarmedTerminated = "Warmed:Terminated",
    }
);

worded!(
    /// `Code` of a maintenance event.
    MaintenanceCode {
        /// The instance will be rebooted.
        InstanceReboot = "instance-reboot",
        /// Its host will be rebooted.
        SystemReboot = "system-reboot",
        /// Network or power maintenance.
        SystemMaintenance = "system-maintenance",
        /// It will be stopped or terminated for good.
        InstanceRetirement = "instance-retirement",
        /// It will be stopped.
        InstanceStop = "instance-stop",
    }
);

worded!(
    /// `State` of a maintenance event.
    MaintenanceState {
        /// Scheduled.
        Active = "active",
        /// Done.
        Completed = "completed",
        /// Called off.
        Canceled = "canceled",
    }
);

worded!(
    /// What happens to a Spot Instance.
    SpotAction {
        /// It ends.
        Terminate = "terminate",
        /// It is stopped.
        Stop = "stop",
        /// It is hibernated.
        Hibernate = "hibernate",
    }
);

/// Where images have their root unless the instance says otherwise. Captures also have `/dev/sda1`, and `xvda` for `ami`.
pub const DEFAULT_ROOT_DEVICE: &str = "/dev/xvda";

/// One line of `block-device-mapping/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// `ami`, `root`, `ebsN` from 1, `ephemeralN` from 0, or `swap`.
    pub virtual_name: Box<str>,
    /// For example `/dev/xvda` or `sdb`.
    pub device: Box<str>,
}

/// A maintenance event: in `events/maintenance/scheduled` while active, in `history` afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceEvent {
    /// What kind.
    pub code: MaintenanceCode,
    /// For people, without the state in brackets that the history puts in front.
    pub description: Box<str>,
    /// `instance-event-` and 17 hexadecimal digits.
    pub event_id: Box<str>,
    /// The earliest start.
    pub not_before: UnixSeconds,
    /// The latest end.
    pub not_after: UnixSeconds,
    /// The deadline for starting it oneself, for reboots.
    pub not_before_deadline: Option<UnixSeconds>,
    /// Where it stands.
    pub state: MaintenanceState,
}

/// The announced interruption of a Spot Instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpotInterruption {
    /// What will happen.
    pub action: SpotAction,
    /// When, approximately.
    pub time: UnixSeconds,
}

/// What EC2 Instance Connect put in place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedSshKeys {
    /// Signed key blobs, with the user that each is for, sorted by user.
    pub active_keys: Vec<ActiveKeys>,
    /// PEM certificate chain of the signer.
    pub signer_cert: Option<Box<str>>,
    /// OCSP staples: name and base64 response, sorted by name.
    pub signer_ocsp: Vec<(Box<str>, Box<str>)>,
}

/// Keys pushed for one user of the operating system. EC2 keeps them for 60 seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveKeys {
    /// The user.
    pub os_user: Box<str>,
    /// The signed blob.
    pub blob: Box<str>,
    /// From then on there are none.
    pub expiration: UnixSeconds,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constant_is_the_default() {
        assert_eq!(Details::NONE, Details::default());
    }
}
