//! stub
use crate::model::Facts;
pub(crate) fn read(_text: &str) -> Result<Facts, (u64, String)> {
    Err((0, String::new()))
}
