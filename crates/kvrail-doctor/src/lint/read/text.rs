//! Text that knows where in its file each character stands, however often it was unquoted, unindented or cut out on the way: a
//! JSON object in a shell word in a YAML block has positions of the YAML file.

use std::ops::Range;

/// A place in a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Position {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

impl Position {
    /// The first character of a file.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// Places are counted from the beginning of a run: a file may be one line of megabytes.
const RUN_BYTES_MAX: usize = 256;

/// Where lines begin, and in long lines where some characters stand: byte offset, line from 1, column from 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Places(Vec<(u32, u32, u32)>);

impl Places {
    pub(super) fn of(text: &str) -> Self {
        let mut places = Vec::new();
        let (mut offset, mut line) = (0_usize, 1_u32);
        for piece in text.split_inclusive('\n') {
            let mut last = 0;
            places.push((offset as u32, line, 0));
            if piece.len() > RUN_BYTES_MAX {
                for (column, (inner, _)) in piece.char_indices().enumerate() {
                    if inner - last >= RUN_BYTES_MAX {
                        places.push(((offset + inner) as u32, line, column as u32));
                        last = inner;
                    }
                }
            }
            offset += piece.len();
            line += 1;
        }
        Self(places)
    }

    /// The byte offset of a line from 1 and a column from 0.
    pub(super) fn offset(&self, text: &str, line: usize, column: usize) -> usize {
        let (line, column) = (line as u32, column as u32);
        let index = self.0.partition_point(|place| (place.1, place.2) <= (line, column));
        let Some(place) = index.checked_sub(1).and_then(|index| self.0.get(index)) else { return 0 };
        if place.1 != line {
            return text.len();
        }
        let rest = &text[place.0 as usize..];
        let ahead =
            rest.char_indices().nth((column - place.2) as usize).map_or(rest.len(), |(offset, _)| offset);
        place.0 as usize + ahead
    }
}

/// Characters that stand one after the other on one line of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    /// Where they begin in the text, in bytes.
    offset: u32,
    /// Where they begin in the file.
    at: Position,
    /// Whether each character is one of the file; otherwise all of them stand for the place at which they begin (an escape, a
    /// folded line).
    exact: bool,
}

/// Text with its places. Texts are pieces of files, which are smaller than 4 GiB.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Text {
    value: String,
    runs: Vec<Run>,
}

impl Text {
    /// A whole file.
    #[must_use]
    pub fn of_file(text: &str) -> Self {
        let mut whole = Self { value: text.to_owned(), runs: Vec::new() };
        for begin in Places::of(text).0 {
            let at = Position { line: begin.1, column: begin.2 + 1 };
            whole.runs.push(Run { offset: begin.0, at, exact: true });
        }
        whole
    }

    /// Text that has one place only.
    #[must_use]
    pub fn at_one_place(value: impl Into<String>, at: Position) -> Self {
        Self { value: value.into(), runs: vec![Run { offset: 0, at, exact: false }] }
    }

    /// The characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.value
    }

    /// Where the character at a byte offset stands.
    #[must_use]
    pub fn at(&self, offset: usize) -> Position {
        let offset = offset.min(self.value.len());
        let index = self.runs.partition_point(|run| run.offset as usize <= offset);
        let Some(run) = index.checked_sub(1).and_then(|index| self.runs.get(index)) else {
            return self.runs.first().map_or(Position::START, |run| run.at);
        };
        let before = self.value.get(run.offset as usize..offset).filter(|_| run.exact);
        let columns = before.map_or(0, |text| text.chars().count());
        Position { line: run.at.line, column: run.at.column + u32::try_from(columns).unwrap_or(0) }
    }

    /// Where it begins.
    #[must_use]
    pub fn start(&self) -> Position {
        self.at(0)
    }

    /// Appends a piece of another text, with its places.
    pub fn push(&mut self, other: &Self, range: Range<usize>) {
        let Some(piece) = other.value.get(range.clone()) else { return };
        if piece.is_empty() {
            return;
        }
        let base = self.value.len();
        let first = other.runs.partition_point(|run| run.offset as usize <= range.start).saturating_sub(1);
        for run in &other.runs[first.min(other.runs.len())..] {
            if run.offset as usize >= range.end {
                break;
            }
            let from = (run.offset as usize).max(range.start);
            let at = if run.offset as usize == from { run.at } else { other.at(from) };
            let offset = u32::try_from(base + from - range.start).unwrap_or(u32::MAX);
            // The next characters of the same run need no run of their own.
            let last = self.runs.last().filter(|last| offset as usize == base && last.exact && run.exact);
            let near = last
                .is_some_and(|last| base - last.offset as usize <= RUN_BYTES_MAX && last.at.line == at.line);
            if !(near && base > 0 && self.at(base) == at) {
                self.runs.push(Run { offset, at, exact: run.exact });
            }
        }
        self.value.push_str(piece);
    }

    /// Appends a character that stands for something else in the file (an escape).
    pub fn push_char(&mut self, character: char, at: Position) {
        self.runs.push(Run { offset: u32::try_from(self.value.len()).unwrap_or(u32::MAX), at, exact: false });
        self.value.push(character);
    }

    /// Blanks for tabs: every character keeps its place.
    pub fn replace_tabs(&mut self) {
        self.value = self.value.replace('\t', " ");
    }

    /// A piece of it.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        let mut piece = Self::default();
        if range.is_empty() {
            return Self::at_one_place("", self.at(range.start));
        }
        piece.push(self, range);
        piece
    }

    /// Its lines, each with where it begins, without line ends.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut offset = 0;
        self.value.split_inclusive('\n').map(move |line| {
            let begin = offset;
            offset += line.len();
            (begin, line.trim_end_matches(['\n', '\r']))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_of_a_piece_still_knows_its_place_in_the_file() {
        let file = Text::of_file("first\n  sécond line\nthird");
        let offset = file.as_str().find("cond").unwrap();
        assert_eq!(file.at(offset), Position { line: 2, column: 5 });
        let mut joined = Text::default();
        joined.push(&file, offset..offset + 4);
        let third = file.as_str().find("third").unwrap();
        joined.push(&file, third..third + 5);
        assert_eq!(joined.as_str(), "condthird");
        assert_eq!(joined.at(2), Position { line: 2, column: 7 });
        assert_eq!(joined.at(6), Position { line: 3, column: 3 });
        assert_eq!(joined.slice(3..8).at(2), Position { line: 3, column: 2 });
        assert_eq!(file.at(9999), Position { line: 3, column: 6 });
    }
}
