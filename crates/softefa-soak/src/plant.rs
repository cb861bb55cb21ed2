//! Defects that are planted to see whether they are found.

use std::str::FromStr;

/// What is planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// A file is left in the base directory.
    LeaveFile,
    /// A process of the fabric is left.
    LeaveProcess,
    /// A file is left in /dev/shm.
    LeaveSharedMemory,
    /// A written byte is wrong.
    WrongByte,
    /// A byte outside of what was written has changed.
    StrayByte,
    /// A written byte changes again later.
    LateByte,
    /// A completion is lost.
    LostCompletion,
    /// A completion comes twice.
    DoubleCompletion,
    /// A completion has a status that nothing explains.
    WrongStatus,
    /// An immediate is lost.
    LostImmediate,
    /// An immediate comes twice.
    DoubleImmediate,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::LeaveFile,
        Self::LeaveProcess,
        Self::LeaveSharedMemory,
        Self::WrongByte,
        Self::StrayByte,
        Self::LateByte,
        Self::LostCompletion,
        Self::DoubleCompletion,
        Self::WrongStatus,
        Self::LostImmediate,
        Self::DoubleImmediate,
    ];

    /// As commands spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LeaveFile => "leave-file",
            Self::LeaveProcess => "leave-process",
            Self::LeaveSharedMemory => "leave-shared-memory",
            Self::WrongByte => "wrong-byte",
            Self::StrayByte => "stray-byte",
            Self::LateByte => "late-byte",
            Self::LostCompletion => "lost-completion",
            Self::DoubleCompletion => "double-completion",
            Self::WrongStatus => "wrong-status",
            Self::LostImmediate => "lost-immediate",
            Self::DoubleImmediate => "double-immediate",
        }
    }

    /// Whether it is the fleet that plants it, rather than a process on a node.
    #[must_use]
    pub fn is_left_behind(self) -> bool {
        matches!(self, Self::LeaveFile | Self::LeaveProcess | Self::LeaveSharedMemory)
    }
}

impl FromStr for Plant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|plant| plant.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|plant| plant.name()).collect();
            format!("no defect is called `{name}`; there are {}", names.join(", "))
        })
    }
}
