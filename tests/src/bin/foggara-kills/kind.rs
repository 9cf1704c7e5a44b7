//! What is done to the cluster, one variant each.

use clap::ValueEnum;
use foggara_proto::wire::admin::StatusResponse;
use foggara_tests::choice::Choice;

/// A kind of disturbance, in the order in which they are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Nothing: what the others are compared with.
    Undisturbed,
    /// `kill -9` of a worker of the group.
    Worker,
    /// `kill -9` of the coordinator that drives the group; the streams come in through another.
    Driver,
    /// The same is stopped for five seconds, and goes on then.
    HangingDriver,
    /// `kill -9` of the coordinator that the streams come in through; their clients attach at another.
    FrontDoor,
}

/// What is done to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    Kill(u32),
    /// Stopped for [`HANG`].
    Hang(u32),
}

/// How long a process that hangs does.
pub const HANG: std::time::Duration = std::time::Duration::from_secs(5);

/// Who is hit, and through which coordinator (from 0) the streams come in.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    pub door: u16,
    pub blow: Option<Blow>,
}

impl Kind {
    /// For people and for files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Undisturbed => "undisturbed",
            Self::Worker => "worker killed",
            Self::Driver => "driver killed",
            Self::HangingDriver => "driver hangs for 5 s",
            Self::FrontDoor => "front door killed",
        }
    }

    /// Whether clients must find another coordinator.
    pub fn attaches(self) -> bool {
        self == Self::FrontDoor
    }

    /// Chooses the victim in a cluster that is whole.
    pub fn scene(self, status: &StatusResponse, choice: &mut Choice) -> Scene {
        let members = status.coordinators.len();
        let driver = status.groups[0].driver;
        let pid = |id: u64| status.coordinators.iter().find(|c| c.id == id).expect("it is a member").pid;
        let any = choice.below(members);
        // Ids count from 1.
        let others: Vec<u16> = (0..members as u16).filter(|door| u64::from(*door) + 1 != driver).collect();
        let other = others[choice.below(others.len())];
        match self {
            Self::Undisturbed => Scene { door: any as u16, blow: None },
            Self::Worker => {
                let ranks: Vec<u32> =
                    status.workers.iter().filter(|w| w.rank.is_some()).map(|w| w.pid).collect();
                Scene { door: any as u16, blow: Some(Blow::Kill(ranks[choice.below(ranks.len())])) }
            }
            Self::Driver => Scene { door: other, blow: Some(Blow::Kill(pid(driver))) },
            Self::HangingDriver => Scene { door: other, blow: Some(Blow::Hang(pid(driver))) },
            Self::FrontDoor => Scene { door: any as u16, blow: Some(Blow::Kill(pid(any as u64 + 1))) },
        }
    }
}
