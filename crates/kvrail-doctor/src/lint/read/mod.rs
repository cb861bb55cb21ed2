//! What files say, as trees and commands whose every part knows its place. Nothing here knows what is right or wrong.

pub mod python;
pub mod shell;
pub mod text;
pub mod yaml;

pub use shell::{Command, Word};
pub use text::{Position, Text};
pub use yaml::{Key, Node, YamlError};
