//! Metadata exchange: how agents that were told each other's address or name get each other's metadata.

use crate::error::Result;

/// What the exchange needs of its agent. Its threads hold it weakly: an agent ends when its last owner drops it.
pub trait Host: Send + Sync + 'static {
    /// Name of the agent.
    fn name(&self) -> &str;
    /// Its full metadata as of now.
    ///
    /// # Errors
    /// When it has no backend that peers could use.
    fn metadata(&self) -> Result<Vec<u8>>;
    /// Imports a peer's metadata, which is input from outside, and tells the peer's name.
    ///
    /// # Errors
    /// When the bytes are not metadata, or no backend is common.
    fn load(&self, metadata: &[u8]) -> Result<String>;
    /// Forgets a peer. Nothing happens when it is not known.
    fn forget(&self, name: &str);
}
