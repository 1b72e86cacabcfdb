use super::{Redis, RedisError};
use redis::{Arg, Cmd, ToRedisArgs, Value};
use tokio::time::Instant;

/// A script of Lua. Sent by its digest, and in full to a server that does not know it.
///
/// What a server says of a failed script is taken for "not done" only where the script has not written yet: all that
/// can fail comes before the first write, and so does the question whether a later command is allowed.
#[derive(Debug)]
pub(crate) struct Script {
    code: &'static str,
    digest: String,
}

/// One run of a script, with keys and arguments.
#[derive(Debug, Clone)]
pub(crate) struct Run<'a> {
    script: &'a Script,
    command: Cmd,
}

impl Script {
    pub(crate) fn new(code: &'static str) -> Self {
        Self { code, digest: redis::Script::new(code).get_hash().to_owned() }
    }

    /// A run with these keys; in a cluster all of one slot, by their `{tag}`.
    pub(crate) fn run<K: ToRedisArgs>(&self, keys: &[K]) -> Run<'_> {
        let mut command = Cmd::new();
        command.arg("EVALSHA").arg(&self.digest).arg(keys.len());
        for key in keys {
            command.arg(key);
        }
        Run { script: self, command }
    }
}

impl Run<'_> {
    #[must_use]
    pub(crate) fn arg(mut self, arg: impl ToRedisArgs) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn push(&mut self, arg: impl ToRedisArgs) {
        self.command.arg(arg);
    }

    /// The key that says which node is asked; without keys, none in particular.
    fn route(&self) -> Option<&[u8]> {
        let mut args = self.command.args_iter().skip(2);
        match (args.next(), args.next()) {
            (Some(Arg::Simple(count)), Some(Arg::Simple(key))) if count != b"0" => Some(key),
            _ => None,
        }
    }

    /// The same with the script itself in place of its digest.
    fn in_full(&self) -> Cmd {
        let mut command = Cmd::new();
        command.arg("EVAL").arg(self.script.code);
        for arg in self.command.args_iter().skip(2) {
            if let Arg::Simple(arg) = arg {
                command.arg(arg);
            }
        }
        command
    }
}

fn is_unknown(error: &RedisError) -> bool {
    error.code() == Some("NOSCRIPT")
}

impl Redis {
    /// Runs a script: in one round trip, in two where the server does not know it yet. Both within the deadline.
    ///
    /// # Errors
    ///
    /// Any; ambiguous unless the script surely has not written.
    pub(crate) async fn run(&self, run: &Run<'_>) -> Result<Value, RedisError> {
        let (route, since) = (run.route(), Instant::now());
        match self.command(route, &run.command).await {
            Err(error) if is_unknown(&error) => {
                let left = self.deadline.saturating_sub(since.elapsed());
                self.clone().with_deadline(left).command(route, &run.in_full()).await
            }
            result => result,
        }
    }
}
