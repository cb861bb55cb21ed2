//! The drawing for browsers: NUMA nodes around root complexes and switches around GPUs and NICs. One file, no script, no
//! font of its own; dark where the reader's page is dark.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kvrail_topology::{GpuId, LinkState, Nic, NicId, Topology};

use super::view::{self, Part, Root, Switch};

/// Geometry, CSS pixels.
const PAD: u32 = 12;
const GAP: u32 = 8;
const TITLE: u32 = 22;
const LEAF_WIDTH: u32 = 184;
const LEAF_HEIGHT: u32 = 42;
const ROW_WIDTH: u32 = 2 * LEAF_WIDTH + GAP;
/// Room for the lines of the legend.
const WIDTH_MIN: u32 = 760;
/// Root complexes beside each other in a NUMA node.
const ROOTS_A_ROW: usize = 4;
/// Characters of a name that fit in half a leaf.
const NAME_MAX: usize = 16;

/// Colours of GPU groups: of like lightness, legible on white and on near-black, neighbours unlike.
const GROUPS: [&str; 8] =
    ["#3b82f6", "#f97316", "#10b981", "#d946ef", "#06b6d4", "#eab308", "#8b5cf6", "#ef6b73"];

const STYLE: &str = "\
text{font-family:system-ui,'Segoe UI','DejaVu Sans',Helvetica,Arial,sans-serif;font-size:12px;fill:#1f2328}
.mono{font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:10.5px;fill:#59636e}
.head{font-size:16px;font-weight:600}.title{font-weight:600}.end{text-anchor:end}
.page{fill:#ffffff}.numa{fill:#f6f8fa;stroke:#8c959f}.root{fill:#ffffff;stroke:#8c959f}
.switch{fill:#f6f8fa;stroke:#8c959f;stroke-dasharray:2 2}.leaf{fill:#ffffff;stroke:#8c959f}
.down{stroke:#d1242f;stroke-width:1.6;stroke-dasharray:5 3}.alarm{fill:#d1242f;font-weight:600}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.mono{fill:#9198a1}.page{fill:#0d1117}
.numa,.switch{fill:#151b23;stroke:#59636e}.root,.leaf{fill:#0d1117;stroke:#59636e}
.down{stroke:#f85149}.alarm{fill:#f85149}}
";

/// Draws everything.
pub(super) fn draw(topology: &Topology) -> String {
    let mut canvas = Canvas { topology, served: view::gpus_of_nics(topology), body: String::new() };
    canvas.text(PAD, 26, "head", &view::summary(topology));
    let (mut y, mut width) = (44, WIDTH_MIN);
    for node in view::nodes(topology) {
        let (w, h) = canvas.numa(node.id, &node.roots, PAD, y);
        width = width.max(w + 2 * PAD);
        y += h + PAD;
    }
    y = canvas.legend(y);
    let title = escape(&view::summary(topology));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{y}\" viewBox=\"0 0 {width} {y}\" \
         role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{width}\" height=\"{y}\"/>\n{}</svg>\n",
        canvas.body
    )
}

struct Canvas<'a> {
    topology: &'a Topology,
    served: BTreeMap<NicId, Vec<GpuId>>,
    body: String,
}

impl Canvas<'_> {
    fn text(&mut self, x: u32, y: u32, class: &str, text: &str) {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let _ = writeln!(self.body, "<text x=\"{x}\" y=\"{y}\"{class}>{}</text>", escape(text));
    }

    fn rect(&mut self, class: &str, [x, y, w, h]: [u32; 4]) {
        let _ = writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"5\"/>"
        );
    }

    /// Draws a NUMA node at `x`, `y`; gives its width and height.
    fn numa(&mut self, id: Option<u32>, roots: &[Root], x: u32, y: u32) -> (u32, u32) {
        let facts = id.and_then(|id| self.topology.numa_node(id));
        let mut title = id.map_or_else(|| "NUMA node unknown".into(), |id| format!("NUMA node {id}"));
        if let Some(list) = facts.map(|it| it.cpu_list()).filter(|list| !list.is_empty()) {
            title += &format!(" · CPUs {list}");
        }
        if let Some(bytes) = facts.and_then(|it| it.memory_bytes) {
            title += &format!(" · {:.1} GiB", bytes as f64 / f64::from(1u32 << 30));
        }
        // Frames first: what is drawn later lies above.
        let (mut w, mut h) = (ROW_WIDTH + 2 * PAD, TITLE + PAD);
        let mut places = Vec::new();
        for row in roots.chunks(ROOTS_A_ROW) {
            let (mut across, mut tall) = (PAD, 0);
            for root in row {
                let (root_w, root_h) = measure(body_of(root));
                places.push((root, x + across, y + h));
                across += root_w + PAD;
                tall = tall.max(root_h);
            }
            w = w.max(across);
            h += tall + PAD;
        }
        self.rect("numa", [x, y, w, h]);
        self.text(x + PAD, y + TITLE, "title", &title);
        for (root, x, y) in places {
            let title = match (root.root, &root.parts[..]) {
                (None, _) => "place not known".into(),
                (Some(complex), [Part::Switch(switch)]) => {
                    format!("root complex {complex} · {}", switch_title(switch))
                }
                (Some(complex), _) => format!("root complex {complex}"),
            };
            self.group("root", &title, body_of(root), x, y);
        }
        if roots.is_empty() {
            h += PAD;
        }
        (w, h)
    }

    /// A frame with a title, then leaves two in a row (GPUs over both), then switches.
    fn group(&mut self, class: &str, title: &str, parts: &[Part], x: u32, y: u32) {
        let (w, h) = measure(parts);
        self.rect(class, [x, y, w, h]);
        self.text(x + PAD, y + 18, "mono", title);
        let (left, mut at) = (x + PAD, y + TITLE + 6);
        for gpu in parts.iter().filter_map(|part| if let Part::Gpu(gpu) = part { Some(*gpu) } else { None }) {
            self.gpu(gpu, left, at);
            at += LEAF_HEIGHT + GAP;
        }
        let nics = parts.iter().filter_map(|part| if let Part::Nic(nic) = part { Some(*nic) } else { None });
        let nics: Vec<NicId> = nics.collect();
        for row in nics.chunks(2) {
            for (x, nic) in [left, left + LEAF_WIDTH + GAP].into_iter().zip(row) {
                self.nic(*nic, x, at);
            }
            at += LEAF_HEIGHT + GAP;
        }
        for switch in switches(parts) {
            self.group("switch", &switch_title(switch), &switch.parts, left, at);
            at += measure(&switch.parts).1 + GAP;
        }
    }

    fn gpu(&mut self, id: GpuId, x: u32, y: u32) {
        let Some(gpu) = self.topology.gpu(id) else { return };
        let rails = &self.topology.assignment().gpus[id.0 as usize];
        let colour = GROUPS[id.0 as usize % GROUPS.len()];
        self.rect("leaf", [x, y, ROW_WIDTH, LEAF_HEIGHT]);
        let _ = writeln!(
            self.body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{ROW_WIDTH}\" height=\"{LEAF_HEIGHT}\" rx=\"5\" fill=\"{colour}\" \
             fill-opacity=\"0.22\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        );
        let model = gpu.model.as_deref().unwrap_or("NVIDIA");
        self.text(x + 10, y + 18, "title", &format!("GPU {} · {model}", id.0));
        let link = gpu.link.map(|link| format!(" · {link}")).unwrap_or_default();
        self.text(x + 10, y + 34, "mono", &format!("{}{link}", gpu.address));
        let known = if rails.alone.complete { "" } else { "≥ " };
        let ceiling = format!("{known}{}", view::gbytes(rails.alone.bps));
        self.text(x + ROW_WIDTH - 10, y + 18, "title end", &ceiling);
        let halved = match rails.all_active.bps == rails.alone.bps {
            true => view::bound(&rails.alone),
            false => format!("{} if all transfer", view::gbytes_number(rails.all_active.bps)),
        };
        let said = format!("{} · {halved}", view::count(rails.rails.len(), "rail"));
        self.text(x + ROW_WIDTH - 10, y + 34, "mono end", &said);
    }

    fn nic(&mut self, id: NicId, x: u32, y: u32) {
        let Some(nic) = self.topology.nic(id) else { return };
        let down = matches!(nic.state, LinkState::Down(_));
        self.rect(if down { "leaf down" } else { "leaf" }, [x, y, LEAF_WIDTH, LEAF_HEIGHT]);
        let served = self.served.get(&id).cloned().unwrap_or_default();
        // A stripe for each GPU that it serves, beside each other from the left.
        let stripes = served.len().min(8) as u32;
        for (place, gpu) in (0..stripes).zip(&served) {
            let colour = GROUPS[gpu.0 as usize % GROUPS.len()];
            let (height, stripe) = (LEAF_HEIGHT - 8, 6 / stripes.clamp(1, 3));
            let _ = writeln!(
                self.body,
                "<rect x=\"{}\" y=\"{}\" width=\"{stripe}\" height=\"{height}\" fill=\"{colour}\"/>",
                x + 5 + place * stripe,
                y + 4
            );
        }
        self.text(x + 16, y + 18, "title", &shortened(&nic.name));
        let address = nic.pci.map_or_else(|| view::kind(nic).to_string(), |address| address.to_string());
        self.text(x + 16, y + 34, "mono", &address);
        self.text(x + LEAF_WIDTH - 8, y + 18, "end", &rate(nic));
        if down {
            self.text(x + LEAF_WIDTH - 8, y + 34, "alarm end", &view::state(nic));
        } else if !served.is_empty() {
            let gpus: Vec<String> = served.iter().take(3).map(|gpu| gpu.0.to_string()).collect();
            let more = if served.len() > 3 { "…" } else { "" };
            self.text(x + LEAF_WIDTH - 8, y + 34, "mono end", &format!("→ GPU {}{more}", gpus.join(",")));
        }
    }

    /// What the marks mean, and what a reader may miss; gives the y below it.
    fn legend(&mut self, y: u32) -> u32 {
        let mut rates: BTreeMap<(String, String), usize> = BTreeMap::new();
        for nic in self.topology.nics() {
            *rates.entry((view::kind(nic).to_string(), rate(nic))).or_default() += 1;
        }
        let rates: Vec<String> =
            rates.into_iter().map(|((kind, rate), count)| format!("{count} × {rate} {kind}")).collect();
        let mut lines = Vec::new();
        if !rates.is_empty() {
            lines.push(format!("Line rates: {}.", rates.join(", ")));
        }
        if !self.topology.gpus().is_empty() && !self.topology.nics().is_empty() {
            lines.push("A NIC has the colours of the GPUs that it serves. GB/s at a GPU: what its rails carry in one direction (10⁹ bytes).".into());
        }
        if self.topology.nics().iter().any(|nic| !nic.state.is_usable()) {
            lines.push("A dashed red frame: the NIC is down and left out.".into());
        }
        let remarks = view::remarks(self.topology);
        let shown = remarks.len().min(12);
        lines.extend(remarks.into_iter().take(shown));
        let mut at = y + 14;
        for line in lines {
            self.text(PAD, at, "", &line);
            at += 18;
        }
        at + 4
    }
}

/// What a root complex's frame holds: where that is one switch, what the switch holds.
fn body_of(root: &Root) -> &[Part] {
    match &root.parts[..] {
        [Part::Switch(switch)] => &switch.parts,
        parts => parts,
    }
}

fn switches(parts: &[Part]) -> impl Iterator<Item = &Switch> {
    parts.iter().filter_map(|part| if let Part::Switch(switch) = part { Some(switch) } else { None })
}

/// Width and height of a group.
fn measure(parts: &[Part]) -> (u32, u32) {
    let gpus = parts.iter().filter(|part| matches!(part, Part::Gpu(_))).count();
    let nics = parts.iter().filter(|part| matches!(part, Part::Nic(_))).count();
    let rows = (gpus + nics.div_ceil(2)) as u32;
    let (mut w, mut h) = (ROW_WIDTH, TITLE + 6 + rows * (LEAF_HEIGHT + GAP));
    for switch in switches(parts) {
        let (inner_w, inner_h) = measure(&switch.parts);
        w = w.max(inner_w);
        h += inner_h + GAP;
    }
    (w + 2 * PAD, h + PAD - GAP)
}

fn switch_title(switch: &Switch) -> String {
    let uplink = switch.uplink.map(|link| format!(" · uplink {link}")).unwrap_or_default();
    format!("switch {}{uplink}", switch.address)
}

fn rate(nic: &Nic) -> String {
    nic.rate_bps.map_or_else(|| "? Gb/s".into(), view::gbits)
}

fn shortened(name: &str) -> String {
    match name.chars().count() > NAME_MAX {
        true => name.chars().take(NAME_MAX - 1).chain(['…']).collect(),
        false => name.to_string(),
    }
}

/// Text of an XML element.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '&' => escaped += "&amp;",
            // Not allowed in XML, even escaped.
            '\u{fffe}' | '\u{ffff}' => escaped.push('?'),
            it if it.is_control() => escaped.push('?'),
            it => escaped.push(it),
        }
    }
    escaped
}
