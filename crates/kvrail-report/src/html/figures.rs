//! The charts: bandwidth and latency against block size, the tail of latencies, bars where there is one size, and rails.

use std::fmt::Write;

use super::chart::{Chart, Point, Series};
use super::group::{Group, Names, Sample};
use super::scale::Scale;
use super::text::{esc, gbps, time, times};
use crate::units::Size;
use crate::{Distribution, Row};

/// Ticks of an axis of sizes at most.
const SIZES_MAX: usize = 7;
/// Points of a tail at most.
const TAIL_POINTS_MAX: usize = 60;
/// Rails whose bars are drawn at most.
const RAILS_MAX: usize = 64;

/// Both charts of a group, or bars where it has one block size; `number` tells groups of a page apart.
pub(super) fn group(group: &Group<'_>, names: &Names, number: usize) -> String {
    let sizes = group.sizes();
    let mut out = format!("<section class=\"group\"><h3>{}</h3>", esc(&group.key.title()));
    if sizes.len() > 1 {
        let bandwidth = bandwidth(group, names, number, &sizes);
        let latency = latency(group, names, number, &sizes);
        let _ = write!(
            out,
            "<div class=\"pair\"><figure>{}<figcaption>Median over turns; whiskers: the middle half of them. Dotted: a plain copy of the \
             same blocks{}.</figcaption></figure><figure>{}<figcaption>Median per transfer; whiskers: up to the 99th \
             percentile.</figcaption></figure></div>",
            bandwidth.svg(),
            if line_rate(group).is_some() { "; dashed: line rate of the rails" } else { "" },
            latency.svg()
        );
    } else if let Some(size) = sizes.first() {
        out += &bars(group, names, *size);
    }
    for (i, size) in chosen(&sizes).into_iter().enumerate() {
        if let Some(tail) = tail(group, names, &format!("g{number}-q{i}"), size) {
            let _ = write!(
                out,
                "<details class=\"tail\"{}><summary>Distribution of latencies at {}</summary><figure>{}</figure></details>",
                if sizes.len() == 1 { " open" } else { "" },
                Size(size),
                tail.svg()
            );
        }
    }
    out + "</section>"
}

fn series<'a>(
    group: &'a Group<'a>,
    names: &'a Names,
    point: impl Fn(&str, u64, &Sample<'_>) -> Point + 'a,
) -> impl Iterator<Item = Series> + 'a {
    group.lines.iter().map(move |(position, line)| {
        let (name, style) = names.at(*position);
        let points = line.iter().map(|(size, sample)| point(name, *size, sample)).collect();
        Series { name: name.into(), style: style.into(), points }
    })
}

fn sizes_axis(sizes: &[u64]) -> (String, Scale) {
    let values: Vec<f64> = sizes.iter().map(|size| *size as f64).collect();
    let text = |value: f64| Size(value as u64).to_string();
    ("Block size".into(), Scale::listed(&values, SIZES_MAX, text))
}

fn bandwidth(group: &Group<'_>, names: &Names, number: usize, sizes: &[u64]) -> Chart {
    let mut lines: Vec<Series> = limits(group).into_iter().collect();
    lines.extend(series(group, names, |name, size, sample| Point {
        x: size as f64,
        y: sample.figures.bandwidth_gbps,
        spread: sample.spread(),
        title: format!(
            "{name}, {}: {} GB/s{}",
            Size(size),
            gbps(sample.figures.bandwidth_gbps),
            of_ceiling(sample)
        ),
    }));
    let values = lines.iter().flat_map(|line| &line.points).map(|p| p.spread.map_or(p.y, |s| s.1.max(p.y)));
    let y = Scale::linear(values);
    Chart {
        id: format!("g{number}-b"),
        title: format!("Bandwidth against block size: {}", group.key.title()),
        x: sizes_axis(sizes),
        y: ("GB/s".into(), y),
        series: lines,
    }
}

fn of_ceiling(sample: &Sample<'_>) -> String {
    sample.figures.ceiling_percent.map_or_else(String::new, |p| format!(", {p:.0} % of a plain copy"))
}

/// The plain copies, and the rails' line rate.
fn limits(group: &Group<'_>) -> Vec<Series> {
    let mut copies: Vec<Point> = Vec::new();
    for size in group.sizes() {
        let here = group.lines.values().filter_map(|line| line.get(&size));
        let most = here.filter_map(|s| s.figures.ceiling_gbps).fold(f64::NAN, f64::max);
        if most.is_finite() {
            let title = format!("plain copy, {}: {} GB/s", Size(size), gbps(most));
            copies.push(Point { x: size as f64, y: most, spread: None, title });
        }
    }
    let mut out = Vec::new();
    if !copies.is_empty() {
        out.push(Series { name: "plain copy".into(), style: "limit".into(), points: copies });
    }
    if let (Some(rate), [first, .., last]) = (line_rate(group), group.sizes().as_slice()) {
        let title = format!("line rate of the rails: {} GB/s", gbps(rate));
        let points =
            [first, last].map(|x| Point { x: *x as f64, y: rate, spread: None, title: title.clone() });
        out.push(Series { name: "line rate".into(), style: "limit rate".into(), points: points.to_vec() });
    }
    out
}

fn line_rate(group: &Group<'_>) -> Option<f64> {
    let rates = group.lines.values().flat_map(|line| line.values()).filter_map(|s| s.figures.line_rate_gbps);
    let rate = rates.fold(f64::NAN, f64::max);
    // One far above all figures would press them to the floor; it is in the table.
    let figures = group.lines.values().flat_map(|line| line.values()).map(|s| s.figures.bandwidth_gbps);
    let most = figures.fold(0.0, f64::max);
    rate.is_finite().then_some(rate).filter(|rate| *rate <= 4.0 * most)
}

fn latency(group: &Group<'_>, names: &Names, number: usize, sizes: &[u64]) -> Chart {
    let lines: Vec<Series> = series(group, names, |name, size, sample| {
        let latency = &sample.figures.latency_us;
        Point {
            x: size as f64,
            y: latency.p50,
            spread: Some((latency.p50, latency.p99.max(latency.p50))),
            title: format!(
                "{name}, {}: median {}, 99 % {}",
                Size(size),
                time(latency.p50),
                time(latency.p99)
            ),
        }
    })
    .collect();
    let values =
        lines.iter().flat_map(|line| &line.points).flat_map(|p| [p.y, p.spread.map_or(p.y, |s| s.1)]);
    let y = Scale::log(values, time_tick);
    Chart {
        id: format!("g{number}-l"),
        title: format!("Latency against block size: {}", group.key.title()),
        x: sizes_axis(sizes),
        y: ("Latency per transfer".into(), y),
        series: lines,
    }
}

/// A time without digits that say nothing.
fn time_tick(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 0.9995 => (us * 1e3, "ns"),
        us if us < 999.5 => (us, "µs"),
        us if us < 999_500.0 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    format!("{} {unit}", value.round())
}

/// The sizes whose tails are shown: the least, a middle one, the greatest.
fn chosen(sizes: &[u64]) -> Vec<u64> {
    let mut chosen: Vec<u64> =
        [sizes.first(), sizes.get(sizes.len() / 2), sizes.last()].into_iter().flatten().copied().collect();
    chosen.dedup();
    chosen
}

/// Latency against the share of transfers that took no longer: the tail at full length.
fn tail(group: &Group<'_>, names: &Names, id: &str, size: u64) -> Option<Chart> {
    let mut lines = Vec::new();
    let mut rarest: f64 = 10.0;
    for (position, line) in &group.lines {
        let Some(sample) = line.get(&size) else { continue };
        let (name, style) = names.at(*position);
        let points = quantiles(&sample.figures.latency_us);
        if points.len() < 2 {
            continue;
        }
        rarest = points.iter().fold(rarest, |most, point| most.max(point.0));
        let points = points.into_iter().map(|(one_in, us)| Point {
            x: one_in,
            y: us,
            spread: None,
            title: format!("{name}: {} of transfers within {}", share(one_in), time(us)),
        });
        lines.push(Series { name: name.into(), style: format!("{style} plain"), points: points.collect() });
    }
    if lines.is_empty() {
        return None;
    }
    let y = Scale::log(lines.iter().flat_map(|line| &line.points).map(|p| p.y), time_tick);
    // From every transfer to the rarest: the place of 1 in N is that of its logarithm.
    let x = Scale::log([1.0, rarest].into_iter(), share);
    Some(Chart {
        id: id.into(),
        title: format!("Distribution of latencies at {}: {}", Size(size), group.key.title()),
        x: ("Share of transfers that took no longer".into(), x),
        y: ("Latency per transfer".into(), y),
        series: lines,
    })
}

/// `90 %`, `99.9 %` for one in 10, one in 1,000.
fn share(one_in: f64) -> String {
    let percent = format!("{:.6}", 100.0 - 100.0 / one_in.max(1.0));
    format!("{} %", percent.trim_end_matches('0').trim_end_matches('.'))
}

/// Of each bucket: one in how many took longer, and its upper bound in microseconds; thinned out.
fn quantiles(latency: &Distribution) -> Vec<(f64, f64)> {
    let total: u64 = latency.histogram_ns.iter().map(|bucket| bucket.1).sum();
    let mut below = 0;
    let mut out: Vec<(f64, f64)> = Vec::new();
    for (bound, count) in &latency.histogram_ns {
        // The place where a bucket begins; the last one would be one in infinity.
        let rest = total - below;
        below += count;
        let one_in = total as f64 / rest as f64;
        let far = out
            .last()
            .is_none_or(|last| (one_in / last.0).ln() >= (total as f64).ln() / TAIL_POINTS_MAX as f64);
        if far {
            out.push((one_in, *bound as f64 / 1e3));
        }
    }
    out
}

/// One block size: a bar per line.
fn bars(group: &Group<'_>, names: &Names, size: u64) -> String {
    let samples: Vec<(usize, &Sample<'_>)> =
        group.lines.iter().filter_map(|(position, line)| Some((*position, line.get(&size)?))).collect();
    let limit = samples.iter().filter_map(|(_, s)| s.figures.ceiling_gbps).fold(f64::NAN, f64::max);
    let most = samples.iter().map(|(_, s)| s.spread().map_or(0.0, |s| s.1).max(s.figures.bandwidth_gbps));
    let most = most.fold(if limit.is_finite() { limit } else { 0.0 }, f64::max).max(f64::MIN_POSITIVE);
    let base = samples.first().map(|(_, s)| s.figures.bandwidth_gbps);
    let mut out = format!(
        "<div class=\"scroll\"><table class=\"bars\"><caption>Blocks of {}</caption><thead><tr><th scope=\"col\">engine</th><th scope=\"col\">bandwidth</th>\
         <th scope=\"col\">GB/s</th><th scope=\"col\">to the first</th><th scope=\"col\">median, 99 %</th></tr></thead><tbody>",
        Size(size)
    );
    for (position, sample) in samples {
        let (name, style) = names.at(position);
        let gb = sample.figures.bandwidth_gbps;
        let width = |value: f64| (value / most * 100.0).clamp(0.0, 100.0);
        let whisker = sample.spread().map_or_else(String::new, |(low, high)| {
            let (from, to) = (width(low), width(high));
            format!("<i class=\"whisker\" style=\"left:{from:.2}%;width:{:.2}%\"></i>", to - from)
        });
        let copy = if limit.is_finite() {
            format!("<i class=\"copy\" style=\"left:{:.2}%\"></i>", width(limit))
        } else {
            String::new()
        };
        let ratio = base.filter(|base| *base > 0.0).map_or_else(|| "–".into(), |base| times(gb / base));
        let latency = &sample.figures.latency_us;
        let _ = write!(
            out,
            "<tr class=\"{style}\"><th scope=\"row\">{}</th><td class=\"bar\"><div><b style=\"width:{:.2}%\"></b>{whisker}{copy}</div></td>\
             <td class=\"n\">{}</td><td class=\"n\">{ratio}</td><td class=\"n\">{}, {}</td></tr>",
            esc(name),
            width(gb),
            gbps(gb),
            time(latency.p50),
            time(latency.p99)
        );
    }
    out += "</tbody></table></div>";
    if limit.is_finite() {
        let _ = write!(
            out,
            "<p class=\"note\">Bars: median over turns; the line across: the middle half of them. The upright line: a plain copy of the same \
             blocks, {} GB/s.</p>",
            gbps(limit)
        );
    }
    out
}

/// What each rail carried, of the row of each line that moved most over several rails.
pub(super) fn rails<'a>(rows: impl Iterator<Item = &'a Row>, names: &Names) -> String {
    let mut best: Vec<(usize, &Row)> = Vec::new();
    for row in rows.filter(|row| row.rails.len() > 1) {
        let Some(position) = names.position(row) else { continue };
        let bytes = |row: &Row| row.rails.iter().map(|rail| u128::from(rail.bytes_posted)).sum::<u128>();
        match best.iter_mut().find(|(there, _)| *there == position) {
            Some((_, there)) if bytes(there) < bytes(row) => *there = row,
            Some(_) => {}
            None => best.push((position, row)),
        }
    }
    let mut out = String::new();
    for (position, row) in best {
        let (name, style) = names.at(position);
        let most = row.rails.iter().map(|rail| rail.bytes_posted).max().unwrap_or(0).max(1);
        let _ = write!(
            out,
            "<figure class=\"rails {style}\"><figcaption>{}: {} × {}, {}; bytes per rail</figcaption><div class=\"scroll\"><ol>",
            esc(name),
            crate::units::grouped(row.batch),
            Size(row.block_bytes),
            row.op
        );
        for rail in row.rails.iter().take(RAILS_MAX) {
            let down = if rail.downs > 0 {
                format!("; down {} times, {:.2} s", rail.downs, rail.down_s)
            } else {
                String::new()
            };
            let _ = write!(
                out,
                "<li title=\"{}: {}{}\"{}><b style=\"height:{:.1}%\"></b><span>{}</span></li>",
                esc(&rail.name),
                crate::units::about(rail.bytes_posted),
                esc(&down),
                if rail.downs > 0 { " class=\"down\"" } else { "" },
                rail.bytes_posted as f64 / most as f64 * 100.0,
                esc(&rail.name)
            );
        }
        out += "</ol></div>";
        let downs: Vec<String> = row
            .rails
            .iter()
            .filter(|rail| rail.downs > 0)
            .map(|rail| format!("{} was down {} times for {:.2} s", rail.name, rail.downs, rail.down_s))
            .collect();
        if !downs.is_empty() {
            let _ = write!(out, "<p class=\"note\">{}.</p>", esc(&downs.join("; ")));
        }
        if row.rails.len() > RAILS_MAX {
            let _ = write!(
                out,
                "<p class=\"note\">{} more rails are in the document.</p>",
                row.rails.len() - RAILS_MAX
            );
        }
        out += "</figure>";
    }
    out
}
