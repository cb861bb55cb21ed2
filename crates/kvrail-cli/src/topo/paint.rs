//! Colours of a terminal, or none.

/// Writes escape sequences only where that was asked for.
#[derive(Clone, Copy)]
pub(super) struct Paint(pub(super) bool);

/// Colours of GPU groups in the 256-colour palette: readable on dark and light ground, neighbours unlike.
const GROUPS: [u8; 8] = [33, 208, 35, 170, 37, 178, 99, 167];

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// In the colour of GPU `ordinal`.
    pub(super) fn group(self, ordinal: u32, text: &str) -> String {
        self.with(&format!("38;5;{}", GROUPS[ordinal as usize % GROUPS.len()]), text)
    }

    pub(super) fn strong(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(super) fn alarm(self, text: &str) -> String {
        self.with("1;31", text)
    }
}
