//! Python as far as settings are written in it: what is assigned, passed by name or stored under a name, where that is a literal. Nothing
//! is run; what only an interpreter could tell is a scalar that begins with `$`, as a shell's is.

use std::ops::Range;
use std::rc::Rc;

use super::text::{Position, Text};
use super::yaml::{Key, Node};

/// Values inside values.
const DEPTH_MAX: usize = 60;

/// What a program says.
#[derive(Debug, Default)]
pub struct Program {
    /// Values of statements: an assignment is a mapping of its name, a call one of its keywords.
    pub trees: Vec<Rc<Node>>,
    /// Variables of the environment that it sets, with their values.
    pub environment: Vec<(Key, Rc<Node>)>,
    /// Calls, in order: the name of what is called, without what it belongs to, and its arguments.
    pub calls: Vec<(Key, Rc<Node>)>,
}

/// Reads a program.
#[must_use]
pub fn program(text: &Text) -> Program {
    let tokens = tokens(text.as_str());
    let mut reader = Reader { text, tokens, at: 0, calls: Vec::new() };
    let mut program = Program::default();
    while let Some(token) = reader.peek(0) {
        let begin = reader.at;
        if token.kind == Kind::Name && reader.is_op(1, b'[') && reader.is_environment(token) {
            reader.at += 2;
            let key = reader.key();
            if reader.is_op(0, b']') && reader.is_op(1, b'=') {
                reader.at += 2;
                program.environment.extend(key.zip(Some(reader.statement())));
            }
        } else if token.kind == Kind::Name && reader.is_op(1, b'(') && reader.is_environment(token) {
            reader.at += 2;
            let key = reader.key();
            if reader.is_op(0, b',') {
                reader.at += 1;
                program.environment.extend(key.zip(Some(reader.value(0))));
            }
        } else if token.kind == Kind::Name && reader.is_op(1, b'=') {
            let name = reader.name(token);
            reader.at += 2;
            let value = reader.statement();
            program.trees.push(Rc::new(Node::mapping(name.at, vec![(name, value)])));
        } else if matches!(token.kind, Kind::Op(b'{' | b'[')) || reader.is_call(0) {
            let value = reader.statement();
            program.trees.push(value);
        }
        reader.at = reader.at.max(begin + 1);
    }
    program.calls = reader.calls;
    program
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A name, with what it belongs to: `os.environ`.
    Name,
    Number,
    /// What stands between the quotes, if that is what it says.
    Str {
        literal: bool,
    },
    Op(u8),
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    range: Range<usize>,
    /// Whether it is the first of its line.
    first: bool,
}

struct Reader<'t> {
    text: &'t Text,
    tokens: Vec<Token>,
    at: usize,
    calls: Vec<(Key, Rc<Node>)>,
}

impl Reader<'_> {
    fn peek(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead)
    }

    fn is_op(&self, ahead: usize, op: u8) -> bool {
        self.peek(ahead).is_some_and(|token| token.kind == Kind::Op(op))
    }

    fn is_call(&self, ahead: usize) -> bool {
        self.peek(ahead).is_some_and(|token| token.kind == Kind::Name) && self.is_op(ahead + 1, b'(')
    }

    fn str(&self, token: &Token) -> &str {
        self.text.as_str().get(token.range.clone()).unwrap_or_default()
    }

    fn is_environment(&self, token: &Token) -> bool {
        matches!(
            self.str(token),
            "os.environ" | "environ" | "os.environ.setdefault" | "environ.setdefault" | "os.putenv"
        )
    }

    fn position(&self, token: &Token) -> Position {
        self.text.at(token.range.start)
    }

    fn name(&self, token: &Token) -> Key {
        let name = self.str(token);
        Key { name: name.rsplit('.').next().unwrap_or(name).to_owned(), at: self.position(token) }
    }

    /// A string, as a name.
    fn key(&mut self) -> Option<Key> {
        let token = self.peek(0).filter(|token| token.kind == Kind::Str { literal: true })?;
        let key = Key { name: self.str(token).to_owned(), at: self.position(token) };
        self.at += 1;
        Some(key)
    }

    fn unknown(&self, at: Position) -> Rc<Node> {
        Rc::new(Node::scalar(Text::at_one_place("$", at)))
    }

    /// A value that ends with its line.
    fn statement(&mut self) -> Rc<Node> {
        let value = self.value(0);
        match self.peek(0) {
            Some(token) if !token.first && token.kind != Kind::Op(b';') => {
                self.skip(0, |token| token.first || token.kind == Kind::Op(b';'));
                self.unknown(value.at)
            }
            _ => value,
        }
    }

    /// What follows a value and makes another one of it; calls in it are calls all the same.
    fn skip(&mut self, depth: usize, ends: impl Fn(&Token) -> bool) {
        while let Some(token) = self.peek(0) {
            match token.kind {
                _ if ends(token) => break,
                Kind::Op(b'(' | b'[' | b'{') => drop(self.value(depth + 1)),
                _ if self.is_call(0) => drop(self.value(depth + 1)),
                Kind::Op(b')' | b']' | b'}') => break,
                _ => self.at += 1,
            }
        }
    }

    /// A value, and nothing behind it that would make another one of it.
    fn item(&mut self, depth: usize) -> Rc<Node> {
        let value = self.value(depth);
        let ends = |token: &Token| matches!(token.kind, Kind::Op(b',' | b']' | b')' | b'}'));
        if self.peek(0).is_none_or(ends) {
            return value;
        }
        self.skip(depth, ends);
        self.unknown(value.at)
    }

    fn value(&mut self, depth: usize) -> Rc<Node> {
        let Some(token) = self.peek(0).cloned() else { return self.unknown(Position::START) };
        let at = self.position(&token);
        if depth > DEPTH_MAX {
            self.at += 1;
            return self.unknown(at);
        }
        match token.kind {
            Kind::Op(b'{') => self.mapping(at, depth),
            Kind::Op(b'[' | b'(') => self.sequence(at, depth),
            Kind::Name if self.is_op(1, b'(') => self.call(&token, depth),
            Kind::Str { literal: true } => {
                self.at += 1;
                let whole = !matches!(self.peek(0).map(|token| token.kind), Some(Kind::Str { .. }));
                let text = self.text.slice(token.range);
                // Prose and templates are no settings; a script says that it is one.
                let plain = !text.as_str().contains('\n') || text.as_str().starts_with("#!");
                if whole && plain { Rc::new(Node::scalar(text)) } else { self.unknown(at) }
            }
            Kind::Number => {
                self.at += 1;
                Rc::new(Node::scalar(self.text.slice(token.range)))
            }
            Kind::Name if matches!(self.str(&token), "True" | "False" | "None") => {
                self.at += 1;
                Rc::new(Node::scalar(self.text.slice(token.range)))
            }
            _ => {
                self.at += 1;
                self.unknown(at)
            }
        }
    }

    fn mapping(&mut self, at: Position, depth: usize) -> Rc<Node> {
        self.at += 1;
        let (mut entries, mut whole) = (Vec::new(), true);
        while let Some(token) = self.peek(0) {
            match token.kind {
                Kind::Op(b'}') => {
                    self.at += 1;
                    break;
                }
                Kind::Op(b',') => self.at += 1,
                Kind::Op(b')' | b']') => break,
                _ => match self.key() {
                    Some(key) if self.is_op(0, b':') => {
                        self.at += 1;
                        entries.push((key, self.item(depth + 1)));
                    }
                    // A set, a comprehension, `**others`.
                    _ => {
                        whole = false;
                        let before = self.at;
                        self.item(depth + 1);
                        self.at = self.at.max(before + 1);
                    }
                },
            }
        }
        if whole { Rc::new(Node::mapping(at, entries)) } else { self.unknown(at) }
    }

    fn sequence(&mut self, at: Position, depth: usize) -> Rc<Node> {
        self.at += 1;
        let mut items = Vec::new();
        while let Some(token) = self.peek(0) {
            match token.kind {
                Kind::Op(b']' | b')') => {
                    self.at += 1;
                    break;
                }
                Kind::Op(b',') => self.at += 1,
                Kind::Op(b'}') => break,
                _ => {
                    let before = self.at;
                    items.push(self.item(depth + 1));
                    self.at = self.at.max(before + 1);
                }
            }
        }
        Rc::new(Node::sequence(at, items))
    }

    /// Its keywords by name, what has none under the empty name; without keywords a sequence. What takes one mapping is that
    /// mapping: `json.dumps({…})`.
    fn call(&mut self, callee: &Token, depth: usize) -> Rc<Node> {
        let callee = self.name(callee);
        let at = callee.at;
        self.at += 2;
        let (mut entries, mut whole): (Vec<(Key, Rc<Node>)>, bool) = (Vec::new(), true);
        while let Some(token) = self.peek(0).cloned() {
            match token.kind {
                Kind::Op(b')') => {
                    self.at += 1;
                    break;
                }
                Kind::Op(b',') => self.at += 1,
                Kind::Op(b']' | b'}') => break,
                Kind::Name if self.is_op(1, b'=') => {
                    let key = self.name(&token);
                    self.at += 2;
                    let value = self.item(depth + 1);
                    entries.push((key, value));
                }
                kind => {
                    whole &= kind != Kind::Op(b'*');
                    let before = self.at;
                    let value = self.item(depth + 1);
                    self.at = self.at.max(before + 1);
                    entries.push((Key { name: String::new(), at: value.at }, value));
                }
            }
        }
        let arguments = Rc::new(Node::mapping(at, entries));
        self.calls.push((callee, Rc::clone(&arguments)));
        match arguments.entries() {
            [(key, only)] if key.name.is_empty() && !only.entries().is_empty() => Rc::clone(only),
            given if whole && !given.is_empty() && given.iter().all(|(key, _)| key.name.is_empty()) => {
                Rc::new(Node::sequence(at, given.iter().map(|(_, value)| Rc::clone(value)).collect()))
            }
            _ if whole => arguments,
            _ => self.unknown(at),
        }
    }
}

fn tokens(source: &str) -> Vec<Token> {
    let bytes = source.as_bytes();
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
    let (mut tokens, mut at, mut first) = (Vec::new(), 0, true);
    while let Some(&byte) = bytes.get(at) {
        let begin = at;
        let kind = match byte {
            b'\n' => {
                first = true;
                at += 1;
                continue;
            }
            b'#' => {
                at += bytes[at..].iter().position(|b| *b == b'\n').unwrap_or(bytes.len() - at);
                continue;
            }
            b'\\' | b' ' | b'\t' | b'\r' | 0x0c => {
                // A line that goes on.
                at += if byte == b'\\' && bytes.get(at + 1) == Some(&b'\n') { 2 } else { 1 };
                continue;
            }
            b'"' | b'\'' => {
                let (range, next, plain) = string(bytes, at);
                at = next;
                tokens.push(Token { kind: Kind::Str { literal: plain }, range, first });
                first = false;
                continue;
            }
            b'0'..=b'9' => {
                while bytes.get(at).is_some_and(|b| is_name(*b) || *b == b'.') {
                    at += 1;
                }
                Kind::Number
            }
            _ if is_name(byte) => {
                while bytes.get(at).is_some_and(|b| is_name(*b) || *b == b'.') {
                    at += 1;
                }
                let prefix = at - begin <= 2 && matches!(bytes.get(at), Some(b'"' | b'\''));
                if prefix && source[begin..at].chars().all(|c| "rRbBuUfFtT".contains(c)) {
                    let (range, next, plain) = string(bytes, at);
                    at = next;
                    // A raw or binary string says what it says; a template does not.
                    let template = source[begin..range.start].contains(['f', 'F', 't', 'T']);
                    let literal = plain && !(template && source[range.clone()].contains('{'));
                    tokens.push(Token { kind: Kind::Str { literal }, range, first });
                    first = false;
                    continue;
                }
                Kind::Name
            }
            // Comparisons and the like, so that a lone `=` is an assignment.
            b'=' | b'!' | b'<' | b'>' | b'+' | b'-' | b'*' | b'/' | b'%' | b'&' | b'|' | b'^' | b':'
                if bytes.get(at + 1) == Some(&b'=') =>
            {
                at += 2;
                Kind::Op(b'~')
            }
            _ => {
                at += 1;
                Kind::Op(byte)
            }
        };
        tokens.push(Token { kind, range: begin..at, first });
        first = false;
    }
    tokens
}

/// What stands between the quotes that begin at `at`, where it ends, and whether it is what it says: without escapes.
fn string(bytes: &[u8], at: usize) -> (Range<usize>, usize, bool) {
    let quote = bytes[at];
    let long = bytes[at..].starts_with(&[quote; 3]);
    let begin = at + if long { 3 } else { 1 };
    let (mut at, mut plain) = (begin, true);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => {
                plain = false;
                at += 2;
            }
            b'\n' if !long => break,
            _ if byte == quote && (!long || bytes[at..].starts_with(&[quote; 3])) => {
                return (begin..at, at + if long { 3 } else { 1 }, plain);
            }
            _ => at += 1,
        }
    }
    let end = at.min(bytes.len());
    (begin..end, end, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str) -> Program {
        program(&Text::of_file(source))
    }

    #[test]
    fn what_is_assigned_passed_and_stored_is_read_with_its_place() {
        let said = read(
            "# a comment with a ' in it\nllm = LLM(model, kv_transfer_config=KVTransferConfig(\n    kv_connector='NixlConnector',\n    \
             kv_connector_extra_config={\"backends\": [\"UCX\"],},  # and so on\n))\nos.environ[\"FI_PROVIDER\"] = 'efa'\n\
             os.environ.setdefault('A', \"b\")\n",
        );
        let config = said.trees[0].path(&["llm", "kv_transfer_config"]).unwrap();
        assert_eq!(config.str_at(&["kv_connector"]), Some("NixlConnector"));
        let backend = &config.path(&["kv_connector_extra_config", "backends"]).unwrap().items()[0];
        assert_eq!((backend.str(), backend.at), (Some("UCX"), Position { line: 4, column: 46 }));
        let set: Vec<_> =
            said.environment.iter().map(|(key, value)| (key.name.as_str(), value.str().unwrap())).collect();
        assert_eq!(set, [("FI_PROVIDER", "efa"), ("A", "b")]);
        let called: Vec<_> = said.calls.iter().map(|(key, _)| key.name.as_str()).collect();
        assert_eq!(called, ["KVTransferConfig", "LLM"]);
    }

    #[test]
    fn what_only_an_interpreter_could_tell_is_not_guessed() {
        let said = read(
            "a = {'role': role, 'x': 'b' + c, 'y': f'{z}', 'n': 8, 'w': 'q' if t else 'r'}\nb = {**a, 'c': 1}\nc = 'text'.upper()\n\
             d = json.dumps({'e': True})\n",
        );
        let a = said.trees[0].get("a").unwrap();
        for name in ["role", "x", "y", "w"] {
            assert_eq!(a.str_at(&[name]), Some("$"), "{name}");
        }
        assert_eq!(a.str_at(&["n"]), Some("8"));
        for (tree, name) in [(1, "b"), (2, "c")] {
            assert_eq!(said.trees[tree].str_at(&[name]), Some("$"));
        }
        assert_eq!(said.trees[3].str_at(&["d", "e"]), Some("True"));
    }

    #[test]
    fn what_is_no_python_ends() {
        for text in
            ["{", "f(", "f(a=", "'", "\"\"\"", "a = {'b'", "}])", "\\", "x = [((((", "os.environ[", "é = 'ü"]
        {
            let _ = read(text);
        }
        let _ = read(&"[".repeat(100_000));
        let _ = read(&"f(a={".repeat(100_000));
    }
}
