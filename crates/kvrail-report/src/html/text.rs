//! Text in HTML: everything that a document says is text, whatever it looks like.

use std::borrow::Cow;

/// Escaped for element content and for attribute values in double quotes. Control characters, which neither HTML nor XML takes,
/// become U+FFFD.
pub(super) fn esc(text: &str) -> Cow<'_, str> {
    let plain =
        |c: char| !matches!(c, '&' | '<' | '>' | '"' | '\'') && (!c.is_control() || matches!(c, '\n' | '\t'));
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if plain(c) => out.push(c),
            _ => out.push('\u{fffd}'),
        }
    }
    Cow::Owned(out)
}

/// GB/s with three significant digits: `0.847`, `3.62`, `46.5`, `285`.
pub(super) fn gbps(value: f64) -> String {
    match value {
        v if !v.is_finite() => "–".into(),
        v if v < 0.9995 => format!("{v:.3}"),
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => crate::units::grouped(v.round().min(1e15) as u64),
    }
}

/// A ratio: `2.97×`.
pub(super) fn times(value: f64) -> String {
    match value {
        v if !v.is_finite() => "–".into(),
        v if v < 9.995 => format!("{v:.2}×"),
        v => format!("{v:.1}×"),
    }
}

/// Microseconds with their unit, milliseconds from 1,000: `0.380 µs`, `4.33 ms`.
pub(super) fn time(us: f64) -> String {
    match us {
        us if !us.is_finite() => "–".into(),
        us if us < 1e3 => format!("{} µs", gbps(us)),
        us if us < 1e6 => format!("{} ms", gbps(us / 1e3)),
        us => format!("{} s", gbps(us / 1e6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        assert_eq!(esc("a</script>\"'&\u{7}"), "a&lt;/script&gt;&quot;&#39;&amp;\u{fffd}");
        assert!(matches!(esc("plain µ"), Cow::Borrowed(_)));
    }

    #[test]
    fn figures_have_three_digits_and_units_that_fit() {
        assert_eq!([gbps(0.8473), gbps(3.6), gbps(46.48), gbps(285.4)], ["0.847", "3.60", "46.5", "285"]);
        assert_eq!([time(0.38), time(1443.8), time(2_500_000.0)], ["0.380 µs", "1.44 ms", "2.50 s"]);
        assert_eq!([times(2.966), times(65.3), times(f64::NAN)], ["2.97×", "65.3×", "–"]);
    }
}
