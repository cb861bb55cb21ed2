//! Shell scripts as the commands that they hold: words without their quotes, assignments, here-documents, each with its place.
//!
//! Not a shell: nothing is expanded, and what only a shell could tell (a loop's rounds, a function's arguments) is not guessed. A word
//! with an expansion in it says so.

use super::text::{Position, Text};

/// Scripts within scripts (`bash -c`), here-documents within here-documents.
const DEPTH_MAX: usize = 6;
/// Commands of one file. What stands behind them is not looked at.
pub const COMMANDS_MAX: usize = 20_000;

/// A word of a command, without its quotes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Word {
    /// What it says.
    pub text: Text,
    /// Where it begins, quotes included.
    pub at: Option<Position>,
    /// Whether a shell would replace something in it.
    pub expands: bool,
    /// Whether any of it was in quotes.
    pub quoted: bool,
}

impl Word {
    /// A word that is no shell's: an element of a list of arguments.
    #[must_use]
    pub fn plain(text: Text) -> Self {
        Self { at: Some(text.start()), text, expands: false, quoted: true }
    }

    /// The characters.
    #[must_use]
    pub fn str(&self) -> &str {
        self.text.as_str()
    }

    /// Where it begins.
    #[must_use]
    pub fn at(&self) -> Position {
        self.at.unwrap_or_else(|| self.text.start())
    }

    fn is_empty(&self) -> bool {
        self.str().is_empty() && !self.quoted
    }
}

/// A variable that is given a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// Its name.
    pub name: String,
    /// Where that stands.
    pub at: Position,
    /// Its value.
    pub value: Word,
}

/// A simple command.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Command {
    /// `NAME=value` before it, or behind `export`.
    pub assignments: Vec<Assignment>,
    /// Its words, redirections left out.
    pub words: Vec<Word>,
    /// What its here-document says.
    pub document: Option<Text>,
    /// Where its output goes, if into a file.
    pub output: Option<String>,
    /// Whether it is the last of its list that runs in the background.
    pub background: bool,
    /// Whether it stands in a loop.
    pub looped: bool,
}

impl Command {
    /// Where it begins.
    #[must_use]
    pub fn at(&self) -> Position {
        let assignment = self.assignments.first().map(|assignment| assignment.at);
        let word = self.words.first().map(Word::at);
        assignment.into_iter().chain(word).min().unwrap_or(Position::START)
    }

    /// Whether one of its words is this one.
    #[must_use]
    pub fn says(&self, word: &str) -> bool {
        self.words.iter().any(|own| own.str() == word)
    }

    /// Whether its assignments hold for the commands after it too, and not for itself alone.
    #[must_use]
    pub fn assigns_for_good(&self) -> bool {
        let declares = ["export", "declare", "typeset", "readonly", "local", "ENV", "ARG"];
        self.words.is_empty() || declares.contains(&self.program())
    }

    /// The name of the program, without its directory.
    #[must_use]
    pub fn program(&self) -> &str {
        let first = self.words.first().map_or("", Word::str);
        first.rsplit('/').next().unwrap_or(first)
    }
}

/// A script's commands, those of `bash -c '…'` and of here-documents for shells included.
#[must_use]
pub fn commands(text: &Text) -> Vec<Command> {
    let mut commands = Vec::new();
    collect(text, 0, &mut commands);
    commands
}

fn collect(text: &Text, depth: usize, commands: &mut Vec<Command>) {
    if depth > DEPTH_MAX {
        return;
    }
    let mut reader = Reader { text, source: text.as_str(), offset: 0, documents: Vec::new(), loops: 0 };
    while commands.len() < COMMANDS_MAX {
        let Some(command) = reader.command() else { break };
        let inner = script_of(&command);
        commands.push(command);
        if let Some(inner) = inner {
            collect(&inner, depth + 1, commands);
        }
    }
}

/// The script that a command gives to a shell: behind `-c`, or as a here-document.
fn script_of(command: &Command) -> Option<Text> {
    let shell = |word: &Word| {
        matches!(word.str().rsplit('/').next().unwrap_or_default(), "sh" | "bash" | "zsh" | "dash")
    };
    let index = command.words.iter().position(shell)?;
    if let Some(document) = &command.document {
        return Some(document.clone());
    }
    let rest = &command.words[index + 1..];
    let flag = rest.iter().take(4).position(|word| {
        word.str().starts_with('-') && !word.str().starts_with("--") && word.str().contains('c')
    })?;
    Some(rest.get(flag + 1)?.text.clone())
}

#[derive(Debug)]
struct Reader<'a> {
    text: &'a Text,
    source: &'a str,
    offset: usize,
    /// Here-documents whose first line has not come yet: what ends them, and whether tabs before lines are left out.
    documents: Vec<(String, bool)>,
    /// Loops that have begun and not ended.
    loops: usize,
}

impl Reader<'_> {
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
    fn command(&mut self) -> Option<Command> {
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

impl Command {
    fn is_empty(&self) -> bool {
        self.words.is_empty() && self.assignments.is_empty()
    }
}

/// `NAME=value` as what it assigns.
#[must_use]
pub fn assignment(word: &Word) -> Option<Assignment> {
    let text = word.str();
    let (name, _) = text.split_once('=')?;
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return None;
    }
    let value = word.text.slice(name.len() + 1..text.len());
    let value = Word { at: Some(value.start()), text: value, expands: word.expands, quoted: word.quoted };
    Some(Assignment { name: name.to_owned(), at: word.at(), value })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Command> {
        commands(&Text::of_file(text))
    }

    fn words(command: &Command) -> Vec<&str> {
        command.words.iter().map(Word::str).collect()
    }

    #[test]
    fn words_lose_their_quotes_and_keep_their_places() {
        let script = "# a comment\nFI_PROVIDER=efa A='x y' vllm serve \"m\" \\\n  --kv-transfer-config '{\"a\":1}' > log 2>&1 &\necho done";
        let commands = read(script);
        assert_eq!(words(&commands[0]), ["vllm", "serve", "m", "--kv-transfer-config", "{\"a\":1}"]);
        assert_eq!(commands[0].assignments[1].value.str(), "x y");
        assert!(commands[0].background);
        assert_eq!(commands[0].words[4].text.at(1), Position { line: 3, column: 26 });
        assert_eq!(words(&commands[1]), ["echo", "done"]);
    }

    #[test]
    fn scripts_for_another_shell_are_read_too() {
        let commands =
            read("srun bash << 'EOF'\nexport X=1\nvllm serve m\nEOF\nbash -lc 'sleep 10 && echo $Y'\n");
        let said: Vec<_> = commands.iter().map(|command| command.program().to_owned()).collect();
        assert_eq!(said, ["srun", "export", "vllm", "bash", "sleep", "echo"]);
        assert_eq!(commands[1].assignments[0].at, Position { line: 2, column: 8 });
        assert_eq!(commands[4].words[1].at(), Position { line: 5, column: 17 });
        assert!(commands[5].words[1].expands);
    }

    #[test]
    fn what_is_not_closed_ends_with_the_file() {
        for broken in [
            "echo 'a",
            "echo \"a $(b",
            "cat <<EOF\nx",
            "a \\",
            "${",
            "$(",
            "`",
            "<<",
            ">",
            "((((",
            "&&&&",
            "a=\"",
            "\\",
        ] {
            let _ = read(broken);
        }
        assert!(
            read("kubectl exec x -- etcdctl del \"\" --prefix")
                .iter()
                .all(|command| command.words.len() == 8)
        );
    }
}
