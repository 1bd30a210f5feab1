//! What is wrong with a configuration file, and where.

use std::{fmt, ops::Range};

/// The text of a configuration file, to turn offsets into lines and columns.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// the file's name as the operator gave it
    pub file: &'a str,
    /// its contents
    pub text: &'a str,
}

impl Source<'_> {
    /// Line and column, both from 1 and the column in characters, of an offset in octets.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = before.matches('\n').count() + 1;
        (line, before.get(start..).unwrap_or_default().chars().count() + 1)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// the file's name
    pub file: String,
    /// line and column from 1; `None` if the whole file is meant
    pub position: Option<(usize, usize)>,
    /// what is wrong, and after a semicolon what was expected or what to do
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some((line, column)) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.text)
    }
}

/// Everything that is wrong with a file, in the order of its lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// Gathers problems while a file is read, so that the operator sees all of them at once.
pub struct Report<'a> {
    source: Source<'a>,
    problems: Vec<(usize, Problem)>,
}

impl<'a> Report<'a> {
    /// An empty report about `source`.
    pub fn new(source: Source<'a>) -> Self {
        Report { source, problems: Vec::new() }
    }

    /// The file's name as the operator gave it.
    pub fn file(&self) -> &'a str {
        self.source.file
    }

    /// Notes that what stands at `span` is wrong.
    pub fn add(&mut self, span: &Range<usize>, text: impl Into<String>) {
        let position = Some(self.source.position(span.start));
        let problem = Problem { file: self.source.file.into(), position, text: text.into() };
        self.problems.push((span.start, problem));
    }

    /// `value` if nothing was wrong.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Problems> {
        self.problems.sort_by_key(|(offset, _)| *offset);
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(Problems(self.problems.into_iter().map(|(_, problem)| problem).collect())),
        }
    }
}

/// The one of `known` that `word` is most likely a slip of, if any is near.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    let best = known.iter().min_by_key(|candidate| distance(word, candidate))?;
    (distance(word, best) <= limit).then_some(*best)
}

/// How many single-character edits or swaps of neighbours lead from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().replace('-', "_").chars().collect();
    let b: Vec<char> = b.to_lowercase().replace('-', "_").chars().collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let same = a[i - 1] == b[j - 1];
                let mut least = (rows[i - 1][j] + 1)
                    .min(rows[i][j - 1] + 1)
                    .min(rows[i - 1][j - 1] + usize::from(!same));
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_from_one_and_in_characters() {
        let source = Source { file: "f", text: "ab\nçd = 1\n" };
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position(3), (2, 1));
        assert_eq!(source.position(5), (2, 2));
        assert_eq!(source.position(9999), (3, 1));
    }

    #[test]
    fn a_slip_finds_its_word_and_nonsense_does_not() {
        let known = ["gateway", "local_id", "psk_file"];
        assert_eq!(nearest("gatewya", &known), Some("gateway"));
        assert_eq!(nearest("local-id", &known), Some("local_id"));
        assert_eq!(nearest("pskfile", &known), Some("psk_file"));
        assert_eq!(nearest("colour", &known), None);
    }
}
