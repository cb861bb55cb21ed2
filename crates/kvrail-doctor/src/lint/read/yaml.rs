//! YAML and JSON as one tree whose every value knows its place. Built from a parser's events, on a stack of its own: how deep and how
//! large a file may grow is bounded, aliases counted as often as they are used.

use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::text::{Places, Position, Text};

/// Values inside values. Kubernetes' own objects nest some twenty deep.
const DEPTH_MAX: usize = 100;
/// Values of one file, those that aliases repeat included.
const VALUES_MAX: usize = 500_000;

/// A value and where it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub value: Value,
    /// Values in it, itself included, as often as aliases repeat them.
    weight: usize,
    /// How deep it nests.
    height: usize,
}

/// What a value is.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Text, a number, a truth value, nothing.
    Scalar(Text, Style),
    /// Values in order.
    Sequence(Vec<Rc<Node>>),
    /// Values by name, in the order of the file.
    Mapping(Vec<(Key, Rc<Node>)>),
}

/// How a scalar is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Bare: a number looks like one.
    Plain,
    /// In quotes, or as a block: text.
    Text,
}

/// A name in a mapping.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    /// The name.
    pub name: String,
    /// Where it stands.
    pub at: Position,
}

/// Why a file is no YAML, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}")]
pub struct YamlError {
    /// Where.
    pub at: Position,
    /// What is wrong.
    pub what: String,
}

impl Node {
    fn new(at: Position, value: Value) -> Self {
        let (weight, height) = match &value {
            Value::Scalar(..) => (1, 1),
            Value::Sequence(items) => sum(items.iter()),
            Value::Mapping(entries) => sum(entries.iter().map(|(_, node)| node)),
        };
        Self { at, value, weight, height }
    }

    /// A scalar that was not in a file as such.
    #[must_use]
    pub fn scalar(text: Text) -> Self {
        Self::new(text.start(), Value::Scalar(text, Style::Text))
    }

    /// A mapping that was not in a file as such.
    #[must_use]
    pub fn mapping(at: Position, entries: Vec<(Key, Rc<Self>)>) -> Self {
        Self::new(at, Value::Mapping(entries))
    }

    /// A sequence that was not in a file as such.
    #[must_use]
    pub fn sequence(at: Position, items: Vec<Rc<Self>>) -> Self {
        Self::new(at, Value::Sequence(items))
    }

    /// The text of a scalar.
    #[must_use]
    pub fn text(&self) -> Option<&Text> {
        match &self.value {
            Value::Scalar(text, _) => Some(text),
            _ => None,
        }
    }

    /// The characters of a scalar.
    #[must_use]
    pub fn str(&self) -> Option<&str> {
        self.text().map(Text::as_str)
    }

    /// A truth value that says yes.
    #[must_use]
    pub fn is_true(&self) -> bool {
        self.str().is_some_and(|text| text.eq_ignore_ascii_case("true") || text == "yes" || text == "on")
    }

    /// The values of a sequence; none where it is none.
    #[must_use]
    pub fn items(&self) -> &[Rc<Self>] {
        match &self.value {
            Value::Sequence(items) => items,
            _ => &[],
        }
    }

    /// The values of a mapping; none where it is none.
    #[must_use]
    pub fn entries(&self) -> &[(Key, Rc<Self>)] {
        match &self.value {
            Value::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Rc<Self>> {
        self.entries().iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// Where a name stands.
    #[must_use]
    pub fn key(&self, name: &str) -> Option<Position> {
        self.entries().iter().find(|(key, _)| key.name == name).map(|(key, _)| key.at)
    }

    /// The value at a path of names.
    #[must_use]
    pub fn path(&self, names: &[&str]) -> Option<&Self> {
        names.iter().try_fold(self, |node, name| node.get(name).map(Rc::as_ref))
    }

    /// The text at a path of names.
    #[must_use]
    pub fn str_at(&self, names: &[&str]) -> Option<&str> {
        self.path(names)?.str()
    }
}

fn sum<'a>(nodes: impl Iterator<Item = &'a Rc<Node>>) -> (usize, usize) {
    let (weight, height) = nodes.fold((1_usize, 0), |(weight, height), node| {
        (weight.saturating_add(node.weight), height.max(node.height))
    });
    (weight, height + 1)
}

/// A file's documents, and where it stops being YAML if it does. What stands before that place is there.
#[must_use]
pub fn parse(text: &Text) -> (Vec<Rc<Node>>, Option<YamlError>) {
    let mut builder = Builder::new(text);
    let mut parser = Parser::new_from_str(text.as_str());
    while let Some(event) = parser.next_event() {
        let outcome = match event {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => {
                let at = builder.position(error.marker().line(), error.marker().col());
                Err(YamlError { at, what: error.info().to_owned() })
            }
        };
        if let Err(error) = outcome {
            return (builder.documents, Some(error));
        }
    }
    (builder.documents, None)
}

/// JSON as vLLM's and others' parsers take it: strictly.
///
/// # Errors
/// Where it is not JSON.
pub fn parse_json(text: &Text) -> Result<Rc<Node>, YamlError> {
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text.as_str()) {
        let begin =
            text.lines().nth(error.line().saturating_sub(1)).map_or(text.as_str().len(), |(begin, _)| begin);
        let mut offset = (begin + error.column().saturating_sub(1)).min(text.as_str().len());
        while !text.as_str().is_char_boundary(offset) {
            offset -= 1;
        }
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or(&what).to_owned();
        return Err(YamlError { at: text.at(offset), what });
    }
    // JSON's tabs are white space, which YAML does not take everywhere; within strings they would have to be escaped.
    let mut spaced = text.clone();
    if text.as_str().contains('\t') {
        spaced.replace_tabs();
    }
    match parse(&spaced) {
        (_, Some(error)) => Err(error),
        (documents, None) => {
            documents.into_iter().next().ok_or(YamlError { at: text.start(), what: "it is empty".into() })
        }
    }
}

/// What is being built: a sequence or mapping that has not ended.
#[derive(Debug)]
enum Open {
    Sequence(Vec<Rc<Node>>),
    Mapping(Vec<(Key, Rc<Node>)>, Option<Key>),
}

#[derive(Debug)]
struct Builder<'a> {
    text: &'a Text,
    /// Where each line begins.
    lines: Vec<usize>,
    places: Places,
    /// What is open, where it began, and its anchor.
    open: Vec<(Open, Position, usize)>,
    anchors: HashMap<usize, Rc<Node>>,
    values: usize,
    documents: Vec<Rc<Node>>,
}

impl<'a> Builder<'a> {
    fn new(text: &'a Text) -> Self {
        let lines = text.lines().map(|(begin, _)| begin).collect();
        let places = Places::of(text.as_str());
        Self {
            text,
            lines,
            places,
            open: Vec::new(),
            anchors: HashMap::new(),
            values: 0,
            documents: Vec::new(),
        }
    }

    /// The byte offset of a line from 1 and a column from 0.
    fn offset(&self, line: usize, column: usize) -> usize {
        self.places.offset(self.text.as_str(), line, column)
    }

    fn position(&self, line: usize, column: usize) -> Position {
        self.text.at(self.offset(line, column))
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), YamlError> {
        let at = || self.position(span.start.line(), span.start.col());
        match event {
            Event::DocumentStart(_) => self.anchors.clear(),
            Event::SequenceStart(anchor, _) => {
                let at = at();
                self.descend(Open::Sequence(Vec::new()), at, anchor)?;
            }
            Event::MappingStart(anchor, _) => {
                let at = at();
                self.descend(Open::Mapping(Vec::new(), None), at, anchor)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some((open, at, anchor)) = self.open.pop() else { return Ok(()) };
                let value = match open {
                    Open::Sequence(items) => Value::Sequence(items),
                    Open::Mapping(entries, _) => Value::Mapping(merged(entries)),
                };
                self.finish(Rc::new(Node::new(at, value)), anchor, 1)?;
            }
            Event::Scalar(value, style, anchor, _) => {
                let at = at();
                let text = self.scalar(&value, style, span, at);
                let style = if style == ScalarStyle::Plain { Style::Plain } else { Style::Text };
                self.finish(Rc::new(Node::new(at, Value::Scalar(text, style))), anchor, 1)?;
            }
            Event::Alias(anchor) => {
                let at = at();
                let node = self.anchors.get(&anchor).cloned();
                let Some(node) = node else {
                    return Err(YamlError { at, what: "an alias stands inside what it names".into() });
                };
                if self.open.len() + node.height > DEPTH_MAX {
                    return Err(too_deep(at));
                }
                let weight = node.weight;
                self.finish(node, 0, weight)?;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn descend(&mut self, open: Open, at: Position, anchor: usize) -> Result<(), YamlError> {
        if self.open.len() >= DEPTH_MAX {
            return Err(too_deep(at));
        }
        self.open.push((open, at, anchor));
        Ok(())
    }

    fn finish(&mut self, node: Rc<Node>, anchor: usize, weight: usize) -> Result<(), YamlError> {
        self.values = self.values.saturating_add(weight);
        if self.values > VALUES_MAX {
            let what = format!("more than {VALUES_MAX} values, those that aliases repeat included");
            return Err(YamlError { at: node.at, what });
        }
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        match self.open.last_mut() {
            None => self.documents.push(node),
            Some((Open::Sequence(items), ..)) => items.push(node),
            Some((Open::Mapping(entries, key), ..)) => match key.take() {
                None => *key = Some(Key { name: node.str().unwrap_or_default().to_owned(), at: node.at }),
                Some(key) => entries.push((key, node)),
            },
        }
        Ok(())
    }

    /// A scalar's text with the places of its characters: exactly where it stands as it is, and in literal blocks line by line.
    fn scalar(&self, value: &str, style: ScalarStyle, span: Span, at: Position) -> Text {
        let begin = self.offset(span.start.line(), span.start.col());
        let source = self.text.as_str();
        match style {
            ScalarStyle::Plain | ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                let begin = begin + usize::from(style != ScalarStyle::Plain);
                if source.get(begin..).is_some_and(|rest| rest.starts_with(value)) {
                    return self.text.slice(begin..begin + value.len());
                }
                self.aligned(value, begin, at)
            }
            ScalarStyle::Literal => {
                self.literal(value, span).unwrap_or_else(|| Text::at_one_place(value, at))
            }
            ScalarStyle::Folded => self.aligned(value, begin, at),
        }
    }

    /// A literal block: each line of the value is a line of the file behind its indentation.
    fn literal(&self, value: &str, span: Span) -> Option<Text> {
        let source = self.text.as_str();
        let mut line = span.start.line().checked_sub(1)?;
        let header = |line: usize| self.lines.get(line).and_then(|begin| source[*begin..].lines().next());
        // A span begins at the block's header or at its first line, as the parser's versions have it.
        let first = value.lines().next().unwrap_or_default();
        if !header(line)?.trim_start().starts_with(first.trim_start()) || first.is_empty() {
            line += 1;
        }
        let mut text = Text::default();
        for piece in value.split_inclusive('\n') {
            let begin = *self.lines.get(line)?;
            let content = piece.trim_end_matches('\n');
            let whole = source[begin..].split_inclusive('\n').next()?;
            let indent = whole.trim_end_matches(['\n', '\r']).len().checked_sub(content.len())?;
            if whole.get(indent..)?.starts_with(content) {
                text.push(self.text, begin + indent..(begin + indent + piece.len()).min(source.len()));
            } else {
                return None;
            }
            line += 1;
        }
        (text.as_str() == value).then_some(text)
    }

    /// A folded or escaped scalar: its characters are looked for one after the other, white space and escapes apart.
    fn aligned(&self, value: &str, begin: usize, at: Position) -> Text {
        let source = self.text.as_str();
        let mut text = Text::default();
        let mut from = begin;
        let mut word_begin = 0;
        let words = value.split_inclusive(char::is_whitespace);
        for word in words {
            let solid = word.trim_end();
            // Only a little ahead: what is not there stands at the scalar's beginning.
            let mut end = (from + solid.len() + 512).min(source.len());
            while !source.is_char_boundary(end) {
                end -= 1;
            }
            let found =
                source.get(from..end).and_then(|window| window.find(solid)).filter(|_| !solid.is_empty());
            if let Some(ahead) = found {
                text.push(self.text, from + ahead..from + ahead + solid.len());
                from += ahead + solid.len();
            } else {
                let place = if word_begin == 0 { at } else { self.text.at(from) };
                solid.chars().for_each(|character| text.push_char(character, place));
            }
            let place = self.text.at(from);
            word[solid.len()..].chars().for_each(|character| text.push_char(character, place));
            word_begin += word.len();
        }
        if text.as_str() == value { text } else { Text::at_one_place(value, at) }
    }
}

fn too_deep(at: Position) -> YamlError {
    YamlError { at, what: format!("values nest more than {DEPTH_MAX} deep") }
}

/// `<<: *defaults`: entries of the mappings that it names, where the mapping itself has none of that name.
fn merged(entries: Vec<(Key, Rc<Node>)>) -> Vec<(Key, Rc<Node>)> {
    if !entries.iter().any(|(key, _)| key.name == "<<") {
        return entries;
    }
    let (merges, mut whole): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(key, _)| key.name == "<<");
    for (_, node) in merges {
        let sources = if node.items().is_empty() { vec![node] } else { node.items().to_vec() };
        for (key, value) in sources.iter().flat_map(|source| source.entries()) {
            if !whole.iter().any(|(own, _)| own.name == key.name) {
                whole.push((key.clone(), Rc::clone(value)));
            }
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Rc<Node> {
        let (documents, error) = parse(&Text::of_file(text));
        assert_eq!(error, None);
        Rc::clone(&documents[0])
    }

    #[test]
    fn values_know_their_places_in_every_style() {
        let yaml = "a:\n  - b: plain\n    c: 'it''s'\n    d: \"q\\tr\"\n  - |\n    line one\n      line two\n  - >-\n    folded\n    text\n";
        let node = one(yaml);
        let items = node.get("a").unwrap().items().to_vec();
        assert_eq!(items[0].get("b").unwrap().at, Position { line: 2, column: 8 });
        assert_eq!(items[0].get("c").unwrap().str(), Some("it's"));
        assert_eq!(items[0].get("d").unwrap().str(), Some("q\tr"));
        let block = items[1].text().unwrap();
        assert_eq!(block.as_str(), "line one\n  line two\n");
        assert_eq!(block.at(block.as_str().find("two").unwrap()), Position { line: 7, column: 12 });
        let folded = items[2].text().unwrap();
        assert_eq!(folded.as_str(), "folded text");
        assert_eq!(folded.at(7), Position { line: 10, column: 5 });
        assert_eq!(node.key("a"), Some(Position { line: 1, column: 1 }));
    }

    #[test]
    fn merges_are_followed_and_a_bomb_of_aliases_is_refused_with_its_place() {
        let node = one("base: &b {x: 1, y: 2}\nown:\n  <<: *b\n  y: 3\n");
        let own = node.get("own").unwrap();
        assert_eq!((own.str_at(&["x"]), own.str_at(&["y"])), (Some("1"), Some("3")));
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let line = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{line}]\n"));
        }
        let error = parse(&Text::of_file(&bomb)).1.unwrap();
        assert!(error.what.contains("aliases") && error.at.line > 1, "{error:?}");
        let deep = "[".repeat(5000);
        let error = parse(&Text::of_file(&deep)).1.unwrap();
        assert!(error.what.contains("deep") || error.what.contains("recursion"), "{error:?}");
    }

    #[test]
    fn json_is_taken_strictly_and_its_mistake_has_a_place() {
        let json = parse_json(&Text::of_file("{\n\t\"a\": [1, {\"b\": \"c\"}]\n}")).unwrap();
        let inner = json.get("a").unwrap().items()[1].get("b").unwrap();
        assert_eq!((inner.str(), inner.at.line), (Some("c"), 2));
        let error = parse_json(&Text::of_file("{\"a\": 1,\n \"b\": 2,}")).unwrap_err();
        assert_eq!(error.at.line, 2, "{error:?}");
        assert!(parse_json(&Text::of_file("{'a': 1}")).is_err());
    }
}
