//! Goes through a script word by word: quotes, expansions, redirections, here-documents.

use super::{Command, Text, Word, assignment};

#[derive(Debug)]
pub(super) struct Reader<'a> {
    text: &'a Text,
    source: &'a str,
    offset: usize,
    /// Here-documents whose first line has not come yet: what ends them, and whether tabs before lines are left out.
    documents: Vec<(String, bool)>,
    /// Loops that have begun and not ended.
    loops: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a Text) -> Self {
        Self { text, source: text.as_str(), offset: 0, documents: Vec::new(), loops: 0 }
    }

    fn rest(&self) -> &str {
        &self.source[self.offset..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            if rest.starts_with("\\\n") {
                self.offset += 2;
            } else if rest.starts_with("\\\r\n") {
                self.offset += 3;
            } else if rest.starts_with([' ', '\t', '\r']) {
                self.offset += 1;
            } else {
                return;
            }
        }
    }

    /// The next command that has words or assignments.
    pub(super) fn command(&mut self) -> Option<Command> {
        let mut command = Command::default();
        loop {
            self.skip_blanks();
            let Some(next) = self.peek() else { break };
            match next {
                '#' => {
                    let end = self.rest().find('\n').unwrap_or(self.rest().len());
                    self.offset += end;
                }
                '\n' => {
                    self.offset += 1;
                    let document = self.documents();
                    if command.document.is_none() {
                        command.document = document;
                    }
                    if !command.is_empty() {
                        return Some(command);
                    }
                }
                ';' | '(' | ')' | '|' | '`' => {
                    // A pipe's left side and a here-document stand on one line: what follows belongs to the next command.
                    self.offset += 1;
                    if !command.is_empty() {
                        return Some(self.with_pending(command));
                    }
                }
                '&' => {
                    self.offset += 1;
                    if self.peek() == Some('>') {
                        self.redirection(&mut command);
                        continue;
                    }
                    command.background = self.peek() != Some('&');
                    if !command.is_empty() {
                        return Some(self.with_pending(command));
                    }
                }
                '<' | '>' => self.redirection(&mut command),
                _ => {
                    let word = self.word();
                    let descriptor = !word.quoted && word.str().bytes().all(|byte| byte.is_ascii_digit());
                    if !(descriptor && matches!(self.peek(), Some('<' | '>'))) {
                        self.add(&mut command, word);
                    }
                }
            }
        }
        (!command.is_empty()).then_some(command)
    }

    /// A command whose here-document was opened before `|`, `;` or `)` gets it although the line goes on: what follows on the line is
    /// rarely more than a redirection.
    fn with_pending(&mut self, mut command: Command) -> Command {
        if !self.documents.is_empty() && command.document.is_none() {
            let end = self.rest().find('\n').map_or(self.source.len(), |end| self.offset + end + 1);
            self.offset = end;
            command.document = self.documents();
        }
        command
    }

    /// Here-documents that were asked for, from the beginning of this line; the first one.
    fn documents(&mut self) -> Option<Text> {
        let mut first = None;
        for (end, tabs) in std::mem::take(&mut self.documents) {
            let begin = self.offset;
            let mut stop = self.source.len();
            let mut next = self.source.len();
            let mut at = begin;
            for line in self.source[begin..].split_inclusive('\n') {
                let content = line.trim_end_matches(['\n', '\r']);
                let content = if tabs { content.trim_start_matches('\t') } else { content };
                if content == end {
                    (stop, next) = (at, at + line.len());
                    break;
                }
                at += line.len();
            }
            self.offset = next;
            first.get_or_insert_with(|| self.text.slice(begin..stop));
        }
        first
    }

    fn redirection(&mut self, command: &mut Command) {
        let operator: String =
            self.rest().chars().take_while(|c| matches!(c, '<' | '>' | '&' | '|')).take(3).collect();
        self.offset += operator.len();
        if operator == "<" && self.peek() == Some('(') || operator == ">" && self.peek() == Some('(') {
            return;
        }
        let tabs = operator == "<<" && self.peek() == Some('-');
        if tabs {
            self.offset += 1;
        }
        self.skip_blanks();
        if matches!(self.peek(), None | Some('\n')) {
            return;
        }
        let before = self.offset;
        let word = self.word();
        if self.offset == before {
            self.offset += self.peek().map_or(0, char::len_utf8);
        }
        match operator.as_str() {
            "<<" => self.documents.push((word.str().to_owned(), tabs)),
            ">" | ">>" | "&>" | ">|" => command.output = Some(word.str().to_owned()),
            _ => {}
        }
    }

    /// A word, up to white space or an operator.
    fn word(&mut self) -> Word {
        let mut word = Word { at: Some(self.text.at(self.offset)), ..Word::default() };
        while let Some(next) = self.peek() {
            let begin = self.offset;
            match next {
                ' ' | '\t' | '\n' | '\r' | ';' | '&' | '|' | '<' | '>' | '(' | ')' => break,
                '\'' => {
                    let inside = begin + 1;
                    let end = self.source[inside..].find('\'').map_or(self.source.len(), |end| inside + end);
                    word.text.push(self.text, inside..end);
                    word.quoted = true;
                    self.offset = (end + 1).min(self.source.len());
                }
                '"' => self.double_quoted(&mut word),
                '\\' => {
                    self.offset += 1;
                    if let Some(escaped) = self.peek() {
                        self.offset += escaped.len_utf8();
                        if escaped != '\n' {
                            word.text.push(self.text, begin + 1..self.offset);
                        }
                    }
                }
                '$' | '`' => self.expansion(&mut word),
                _ => {
                    let plain = self.rest().find(|c: char| " \t\n\r;&|<>()'\"\\$`".contains(c));
                    self.offset = plain.map_or(self.source.len(), |end| begin + end);
                    word.text.push(self.text, begin..self.offset);
                }
            }
        }
        word
    }

    fn double_quoted(&mut self, word: &mut Word) {
        self.offset += 1;
        word.quoted = true;
        while let Some(next) = self.peek() {
            let begin = self.offset;
            match next {
                '"' => {
                    self.offset += 1;
                    return;
                }
                '\\' => {
                    let escaped = self.source[begin + 1..].chars().next();
                    self.offset = begin + 1 + escaped.map_or(0, char::len_utf8);
                    match escaped {
                        Some('"' | '\\' | '$' | '`') => word.text.push(self.text, begin + 1..self.offset),
                        Some('\n') => {}
                        _ => word.text.push(self.text, begin..self.offset),
                    }
                }
                '$' | '`' => self.expansion(word),
                _ => {
                    let plain = self.rest().find(['"', '\\', '$', '`']);
                    self.offset = plain.map_or(self.source.len(), |end| begin + end);
                    word.text.push(self.text, begin..self.offset);
                }
            }
        }
    }

    /// `$NAME`, `${…}`, `$(…)`, `` `…` ``: kept as it is written.
    fn expansion(&mut self, word: &mut Word) {
        let begin = self.offset;
        let rest = self.rest();
        let length = match rest.as_bytes().get(..2) {
            Some(b"$(") => balanced(rest, '(', ')'),
            Some(b"${") => balanced(rest, '{', '}'),
            _ if rest.starts_with('`') => rest[1..].find('`').map_or(rest.len(), |end| end + 2),
            _ => {
                let name = rest[1..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                1 + name.unwrap_or(rest.len() - 1)
            }
        };
        word.expands |= length > 1;
        self.offset = begin + length.max(1);
        word.text.push(self.text, begin..self.offset);
    }

    fn add(&mut self, command: &mut Command, word: Word) {
        if word.is_empty() {
            return;
        }
        let prefix = command.words.is_empty();
        if prefix && matches!(word.str(), "while" | "until" | "for") {
            self.loops += 1;
        } else if prefix && word.str() == "done" {
            self.loops = self.loops.saturating_sub(1);
        }
        command.looped |= self.loops > 0;
        if prefix
            && (matches!(
                word.str(),
                "if" | "then"
                    | "else"
                    | "elif"
                    | "do"
                    | "while"
                    | "until"
                    | "{"
                    | "}"
                    | "!"
                    | "time"
                    | "fi"
                    | "done"
                    | "esac"
            ))
        {
            return;
        }
        let declares = command.words.first().is_some_and(|first| {
            matches!(
                first.str(),
                "export" | "declare" | "local" | "readonly" | "typeset" | "env" | "ENV" | "ARG" | "sudo"
            )
        });
        if (prefix || declares)
            && let Some(assignment) = assignment(&word)
        {
            command.assignments.push(assignment);
            return;
        }
        command.words.push(word);
    }
}

/// How long an expansion with brackets is.
fn balanced(text: &str, open: char, close: char) -> usize {
    let mut depth = 0_usize;
    for (offset, character) in text.char_indices() {
        if character == open {
            depth += 1;
        } else if character == close {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return offset + character.len_utf8();
            }
        }
    }
    text.len()
}
