//! Line charts as SVG: themed by the page's style sheet, readable without script, and by screen readers.

use std::fmt::Write;

use super::scale::Scale;
use super::text::esc;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
/// Room for the axes' texts.
const LEFT: f64 = 72.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;

/// A point, with how far its values spread.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// The ends of its whisker.
    pub(super) spread: Option<(f64, f64)>,
    /// What is shown when one points at it.
    pub(super) title: String,
}

/// A line.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// Which of the page's styles it has: `s0` to `s7`, `limit`.
    pub(super) style: String,
    pub(super) points: Vec<Point>,
}

/// A chart.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Chart {
    /// Unique on the page.
    pub(super) id: String,
    pub(super) title: String,
    pub(super) x: (String, Scale),
    pub(super) y: (String, Scale),
    pub(super) series: Vec<Series>,
}

impl Chart {
    /// As an SVG element.
    pub(super) fn svg(&self) -> String {
        let (plot_w, plot_h) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let (x, y) = (&self.x.1, &self.y.1);
        let px = |value: f64| LEFT + x.at(value) * plot_w;
        let py = |value: f64| TOP + (1.0 - y.at(value)) * plot_h;
        let id = esc(&self.id);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}-t\"><title id=\"{id}-t\">{}</title>",
            esc(&self.title)
        );
        let mut put = |text: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = out.write_fmt(text);
        };
        for (value, label) in &y.ticks {
            let at = py(*value);
            put(format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
                WIDTH - RIGHT
            ));
            put(format_args!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                esc(label)
            ));
        }
        for (value, label) in &x.ticks {
            let at = px(*value);
            let foot = HEIGHT - BOTTOM;
            put(format_args!(
                "<line class=\"notch\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{foot}\" y2=\"{}\"/>",
                foot + 4.0
            ));
            put(format_args!(
                "<text class=\"tick\" x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                foot + 18.0,
                esc(label)
            ));
        }
        put(format_args!(
            "<text class=\"axis\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            LEFT + plot_w / 2.0,
            HEIGHT - 8.0,
            esc(&self.x.0)
        ));
        put(format_args!(
            "<text class=\"axis\" transform=\"translate(13 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            TOP + plot_h / 2.0,
            esc(&self.y.0)
        ));
        for series in &self.series {
            put(format_args!("<g class=\"line {}\">", esc(&series.style)));
            for point in &series.points {
                if let Some((low, high)) = point.spread {
                    let at = px(point.x);
                    put(format_args!(
                        "<line class=\"whisker\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                        py(low),
                        py(high)
                    ));
                }
            }
            let path: Vec<String> =
                series.points.iter().map(|point| format!("{:.1},{:.1}", px(point.x), py(point.y))).collect();
            if path.len() > 1 {
                put(format_args!("<polyline points=\"{}\"/>", path.join(" ")));
            }
            for point in &series.points {
                let (at_x, at_y) = (px(point.x), py(point.y));
                put(format_args!("<g class=\"point\"><title>{}</title>", esc(&point.title)));
                put(format_args!("{}</g>", marker(&series.style, at_x, at_y)));
            }
            put(format_args!("</g>"));
        }
        out + "</svg>"
    }
}

/// The mark of a style: its shape tells it apart where colours do not.
pub(super) fn marker(style: &str, x: f64, y: f64) -> String {
    let polygon = |corners: &[(f64, f64)]| {
        let corners: Vec<String> =
            corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        format!("<polygon class=\"mark\" points=\"{}\"/>", corners.join(" "))
    };
    match style {
        "s0" => format!("<circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"),
        "s1" => polygon(&[(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)]),
        "s2" => polygon(&[(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)]),
        "s3" => polygon(&[(0.0, -4.8), (4.6, 3.6), (-4.6, 3.6)]),
        "s4" => polygon(&[(0.0, 4.8), (4.6, -3.6), (-4.6, -3.6)]),
        "s5" => polygon(&[(-4.0, 0.0), (-2.0, -3.6), (2.0, -3.6), (4.0, 0.0), (2.0, 3.6), (-2.0, 3.6)]),
        // A limit has no values of its own, only places where one can point at it.
        "limit" => format!("<circle class=\"hover\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"/>"),
        _ => format!("<circle class=\"mark hollow\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\"/>"),
    }
}
