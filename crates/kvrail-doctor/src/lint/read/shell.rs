//! Shell scripts as the commands that they hold: words without their quotes, assignments, here-documents, each with its place.
//!
//! Not a shell: nothing is expanded, and what only a shell could tell (a loop's rounds, a function's arguments) is not guessed. A word
//! with an expansion in it says so.

mod reader;

use super::text::{Position, Text};
use reader::Reader;

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
    let mut reader = Reader::new(text);
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
