//! What was found, written for people and programs.
//!
//! Whoever finds something (the checks of a host, `lint`, `log`, `probe`) makes a [`Report`] of it: there it is freed of secrets and
//! of what would confuse a terminal, and put into the order in which people should read it. The renderers are pure functions of that, so that
//! what is rendered of a bundle a year later says the same.

mod json;
mod markdown;
mod page;
mod report;
mod sarif;
mod terminal;
#[cfg(test)]
mod test_rules;
mod text;

pub use json::{SCHEMA, json};
pub use markdown::markdown;
pub use page::{list, list_json, list_markdown, page};
pub use report::{Checked, Report, State, Told, Unread};
pub use sarif::sarif;
pub use terminal::{Manner, terminal};
