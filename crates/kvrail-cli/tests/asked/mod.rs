//! What people ask of a test program that has a `main` of its own, in the words of cargo's harness: filters, `--exact`,
//! `--list`.

/// The tests that the arguments ask for; none when they only want them listed, which is done, or ask for what is not here.
pub(crate) fn wanted<T>(
    tests: impl IntoIterator<Item = T>,
    name_of: impl Fn(&T) -> &'static str,
    arguments: &[String],
) -> Vec<T> {
    let asks = |word: &str| arguments.iter().any(|argument| argument == word);
    let exact = asks("--exact");
    let filters: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| {
        let matches =
            |filter: &&String| if exact { name == **filter } else { name.contains(filter.as_str()) };
        filters.is_empty() || filters.iter().any(matches)
    };
    let wanted: Vec<T> = tests.into_iter().filter(|test| is_wanted(name_of(test))).collect();
    if asks("--list") {
        wanted.iter().for_each(|test| println!("{}: test", name_of(test)));
        return Vec::new();
    }
    // What a doctest or `--ignored` asks for is not here.
    if asks("--ignored") { Vec::new() } else { wanted }
}
