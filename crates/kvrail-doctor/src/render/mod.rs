//! What was found, written for people and programs. Pure functions: what is rendered of a bundle a year later says the same.

mod terminal;

pub use terminal::{Manner, terminal};
