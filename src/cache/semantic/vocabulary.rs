//! The words that the guard knows.

/// Words that say nothing before another word.
pub(super) const ARTICLES: &[&str] = &["a", "an", "the"];

/// Words behind which prose has an article, none of them a command; besides verbs.
pub(super) const BEFORE_ARTICLE: &[&str] = &[
    "about", "after", "and", "are", "aren't", "as", "at", "be", "because", "been", "become", "before",
    "being", "between", "but", "by", "can", "contain", "contains", "could", "describe", "did", "does",
    "during", "explain", "for", "from", "gave", "give", "gives", "had", "has", "have", "having", "her",
    "here's", "him", "how", "if", "in", "inside", "into", "is", "isn't", "it", "it's", "like", "may", "me",
    "mean", "means", "might", "must", "need", "needed", "needs", "of", "on", "onto", "or", "outside", "over",
    "per", "should", "such", "suggest", "takes", "than", "that", "that's", "them", "there", "there's",
    "this", "through", "to", "under", "up", "us", "use", "used", "uses", "using", "via", "want", "wants",
    "was", "wasn't", "were", "weren't", "what", "what's", "when", "where", "where's", "while", "who's",
    "why", "will", "with", "within", "without", "would", "write", "you",
];

/// Words behind which stands a verb.
pub(super) const BEFORE_VERB: &[&str] = &["to", "i", "you", "we", "they", "he", "she"];

/// Letters by their names.
pub(super) const GREEK: &[&str] = &[
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "omicron", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
];

/// Words that say nothing where a message begins with them.
pub(super) const POLITE: &[&str] = &["please", "kindly"];

/// The same with a mark behind them: without one they may be what it is about.
pub(super) const GREETINGS: &[&str] = &["hi", "hello", "hey", "thanks"];

/// What stands behind a letter that is no article, or behind an article that says something, as in "a few" and "in the
/// charge of"; besides numbers, negators and words that turn the sense around.
pub(super) const NOT_AFTER_ARTICLE: &[&str] = &[
    "and",
    "is",
    "are",
    "be",
    "has",
    "have",
    "does",
    "do",
    "can",
    "to",
    "of",
    "by",
    "at",
    "as",
    "vs",
    "versus",
    "few",
    "little",
    "lot",
    "bit",
    "couple",
    "number",
    "majority",
    "minority",
    "same",
    "other",
    "charge",
    "control",
    "command",
    "possession",
    "question",
    "front",
    "case",
    "place",
    "order",
    "time",
    "way",
    "course",
    "sea",
];

/// What has letters for names, so that the one behind it is no article.
pub(super) const LETTERED: &[&str] = &[
    "vitamin",
    "hepatitis",
    "influenza",
    "type",
    "grade",
    "plan",
    "option",
    "class",
    "group",
    "section",
    "part",
    "vector",
    "variable",
    "point",
    "team",
    "player",
    "row",
    "column",
    "letter",
    "series",
    "appendix",
    "exhibit",
    "figure",
    "version",
    "drive",
];

/// As they are counted with; "i" is a word, and "v" and "x" are letters.
pub(super) const ROMAN: &[&str] = &["ii", "iii", "iv", "vi", "vii", "viii", "ix", "xi", "xii"];

/// Words before which these words say nothing: "how do I", "how can we", "how to". "One" may be a number.
pub(super) const AFTER_HOW: &[&str] = &["do", "can", "could", "would", "to", "i", "you", "we"];

pub(super) const NEGATORS: &[&str] = &[
    "no", "not", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "without", "except",
    "unless", "hardly", "barely", "lack", "lacks", "cannot", "cant", "dont", "doesnt", "didnt", "wont",
    "isnt", "arent", "wasnt", "nicht", "kein", "keine", "keinen", "nie", "ohne", "ne", "pas", "jamais",
    "sans", "sin", "nunca", "non", "senza",
];

pub(super) const NUMBERS: &[&str] = &[
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "dozen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    "hundred", "thousand", "million", "billion", "half", "third", "quarter", "once", "twice", "first",
    "second", "last", "double", "triple", "single",
];

pub(super) const TURNS: &[&str] = &[
    "from",
    "into",
    "before",
    "after",
    "over",
    "under",
    "above",
    "below",
    "with",
    "within",
    "inside",
    "outside",
    "up",
    "down",
    "on",
    "off",
    "in",
    "out",
    "for",
    "against",
    "than",
    "more",
    "less",
    "fewer",
    "most",
    "least",
    "all",
    "any",
    "some",
    "every",
    "each",
    "only",
    "if",
    "or",
    "but",
    "must",
    "may",
    "should",
    "was",
    "were",
    "did",
    "will",
    "max",
    "min",
    "maximum",
    "minimum",
    "increase",
    "decrease",
    "raise",
    "lower",
    "higher",
    "enable",
    "disable",
    "add",
    "remove",
    "create",
    "delete",
    "start",
    "stop",
    "open",
    "close",
    "buy",
    "sell",
    "left",
    "right",
    "north",
    "south",
    "east",
    "west",
    "best",
    "worst",
    "good",
    "bad",
    "allow",
    "deny",
    "accept",
    "reject",
    "ascending",
    "descending",
    "encrypt",
    "decrypt",
    "upload",
    "download",
    "import",
    "export",
    "today",
    "yesterday",
    "tomorrow",
    "why",
    "how",
    "who",
    "whom",
    "what",
    "when",
    "where",
    "which",
    "whose",
];
