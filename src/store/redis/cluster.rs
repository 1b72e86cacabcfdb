//! Which node of a cluster serves a key.

use super::{
    RedisError, RedisErrorKind,
    node::{Node, Reply},
    options::Settings,
};
use arc_swap::ArcSwapOption;
use futures_util::{
    future::{FutureExt as _, Shared},
    stream::{FuturesUnordered, StreamExt as _},
};
use redis::{Cmd, ConnectionAddr, ConnectionInfo, Value};
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// The nodes of a cluster, as far as they are known.
pub(super) struct Cluster {
    seeds: Vec<ConnectionInfo>,
    pub(super) settings: Settings,
    nodes: Mutex<HashMap<(String, u16), Arc<Node>>>,
    map: ArcSwapOption<Map>,
    look: Mutex<Look>,
}

/// Who serves which slots.
struct Map {
    /// First and last slot, in order.
    ranges: Vec<(u16, u16, Arc<Node>)>,
}

/// The latest look at the cluster.
#[derive(Default)]
struct Look {
    running: Option<Shared<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    ended: Option<Instant>,
}

/// How often a call is sent on before it is given up.
const HOPS: usize = 8;
/// While slots are moved or a master is voted for.
const PAUSE: Duration = Duration::from_millis(20);
/// The least time from one look at the cluster to the next.
const PAUSE_OF_LOOKS: Duration = Duration::from_millis(100);
const SLOTS: usize = 16384;

impl Cluster {
    pub(super) fn new(seeds: Vec<ConnectionInfo>, settings: Settings) -> Result<Self, RedisError> {
        let cluster = Self {
            seeds,
            settings,
            nodes: Mutex::default(),
            map: ArcSwapOption::empty(),
            look: Mutex::default(),
        };
        for seed in &cluster.seeds {
            // Of a cluster there is one database.
            let known = address(seed).filter(|_| seed.redis_settings().db() == 0);
            let (host, port) = known.ok_or(RedisError::definite(RedisErrorKind::InvalidUrl))?;
            cluster.node(host, port)?;
        }
        if cluster.seeds.is_empty() {
            return Err(RedisError::definite(RedisErrorKind::InvalidUrl));
        }
        Ok(cluster)
    }

    /// Asks the node of this slot; `was_sent` tells whether one may have begun with it.
    pub(super) async fn ask(
        self: &Arc<Self>,
        slot: u16,
        command: &Cmd,
        was_sent: &AtomicBool,
    ) -> Result<Reply, RedisError> {
        let mut redirected: Option<(Arc<Node>, bool)> = None;
        let mut last = RedisError::definite(RedisErrorKind::NoNode);
        for hop in 0..HOPS {
            let (node, is_moving) = match redirected.take() {
                Some(target) => target,
                None => match self.owner(slot).await {
                    Some(node) => (node, false),
                    None => return Err(last),
                },
            };
            let link = match node.link().await {
                Ok(link) => link,
                Err(error) => {
                    self.look().await;
                    // Another may have taken over.
                    if self.known_owner(slot).is_none_or(|owner| Arc::ptr_eq(&owner, &node)) {
                        return Err(error);
                    }
                    last = error;
                    continue;
                }
            };
            was_sent.store(true, Ordering::Release);
            let reply = match is_moving {
                false => link.ask(command).await,
                true => link.ask_while_moving(command).await,
            };
            let reply = match reply {
                Ok(reply) => reply,
                Err(error) => {
                    self.look_soon();
                    return Err(error);
                }
            };
            let error = match reply {
                Err(error) if is_elsewhere(&error) => error,
                reply => return Ok(reply),
            };
            // Nobody has begun with it.
            was_sent.store(false, Ordering::Release);
            match error.code() {
                Some(code @ ("MOVED" | "ASK")) => {
                    let (host, port) = error.redirect(&node).ok_or_else(RedisError::unexpected)?;
                    redirected = Some((self.node(host, port)?, code == "ASK"));
                    if code == "MOVED" {
                        self.look_soon();
                    }
                    if hop > 1 {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Some("READONLY") => {
                    tokio::time::sleep(PAUSE).await;
                    self.look().await;
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
            last = error;
        }
        Err(last)
    }

    /// One node for each range of slots, as it is now: of who was one, nobody may have heard anything since.
    pub(super) async fn masters(self: &Arc<Self>) -> Vec<Arc<Node>> {
        self.look().await;
        let Some(map) = self.map.load_full() else { return Vec::new() };
        let mut masters: Vec<Arc<Node>> = Vec::new();
        for (_, _, node) in &map.ranges {
            if !masters.iter().any(|known| Arc::ptr_eq(known, node)) {
                masters.push(Arc::clone(node));
            }
        }
        masters
    }

    /// Whether all slots are served by somebody, as far as is known.
    pub(super) fn is_whole(&self) -> bool {
        self.map.load().as_ref().is_some_and(|map| map.count() == SLOTS)
    }

    async fn owner(self: &Arc<Self>, slot: u16) -> Option<Arc<Node>> {
        if let Some(owner) = self.known_owner(slot) {
            return Some(owner);
        }
        self.look().await;
        self.known_owner(slot)
    }

    fn known_owner(&self, slot: u16) -> Option<Arc<Node>> {
        self.map.load().as_ref()?.owner(slot)
    }

    fn node(&self, host: &str, port: u16) -> Result<Arc<Node>, RedisError> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.get(&(host.to_owned(), port)) {
            return Ok(Arc::clone(node));
        }
        let seed = &self.seeds[0];
        let address = match seed.addr() {
            ConnectionAddr::TcpTls { insecure, .. } => {
                ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: *insecure, tls_params: None }
            }
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        };
        let node = Arc::new(Node::new(seed.clone().set_addr(address), &self.settings)?);
        nodes.insert((host.to_owned(), port), Arc::clone(&node));
        Ok(node)
    }

    /// Looks again who serves what, unless that was done just now, without waiting for it.
    pub(super) fn look_soon(self: &Arc<Self>) {
        drop(self.look());
    }

    /// Looks again who serves what, unless that was done just now. All who ask share one look, which goes on by itself.
    fn look(self: &Arc<Self>) -> impl Future<Output = ()> + use<> {
        let running = {
            let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
            match &look.running {
                Some(running) => Some(running.clone()),
                None if look.ended.is_some_and(|ended| ended.elapsed() < PAUSE_OF_LOOKS) => None,
                None => {
                    let cluster = Arc::clone(self);
                    let task = tokio::spawn(async move {
                        let limit = cluster.settings.connect_timeout * 2;
                        let _ = tokio::time::timeout(limit, cluster.look_around()).await;
                        cluster.looked();
                    });
                    let cluster = Arc::clone(self);
                    let end = task.map(move |result| {
                        // Only if its runtime is shut down.
                        if result.is_err() {
                            cluster.looked();
                        }
                    });
                    let running = (Box::pin(end) as Pin<Box<dyn Future<Output = ()> + Send>>).shared();
                    look.running = Some(running.clone());
                    Some(running)
                }
            }
        };
        async move {
            if let Some(running) = running {
                running.await;
            }
        }
    }

    fn looked(&self) {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        *look = Look { running: None, ended: Some(Instant::now()) };
    }

    /// Asks all that are known, and takes the first answer in which every slot is served, or else the fullest.
    async fn look_around(&self) {
        let nodes: Vec<_> = {
            let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            nodes.values().cloned().collect()
        };
        let mut asked: FuturesUnordered<_> = nodes.into_iter().map(|node| self.ask_for_slots(node)).collect();
        let mut best: Option<Map> = None;
        while let Some(map) = asked.next().await {
            let Some(map) = map else { continue };
            let count = map.count();
            if best.as_ref().is_none_or(|best| count > best.count()) {
                best = Some(map);
            }
            if count == SLOTS {
                break;
            }
        }
        let Some(map) = best else { return };
        let seeds: Vec<_> = self.seeds.iter().filter_map(address).collect();
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).retain(|(host, port), node| {
            seeds.contains(&(host.as_str(), *port))
                || map.ranges.iter().any(|(_, _, owner)| Arc::ptr_eq(owner, node))
        });
        self.map.store(Some(Arc::new(map)));
    }

    async fn ask_for_slots(&self, node: Arc<Node>) -> Option<Map> {
        let command = {
            let mut command = redis::cmd("CLUSTER");
            command.arg("SLOTS");
            command
        };
        let link = node.link().await.ok()?;
        let reply = tokio::time::timeout(self.settings.connect_timeout, link.ask(&command));
        let value = reply.await.ok()?.ok()?.ok()?;
        let Value::Array(ranges) = value else { return None };
        let mut map = Map { ranges: Vec::with_capacity(ranges.len()) };
        for range in ranges {
            let Value::Array(range) = range else { return None };
            let [Value::Int(start), Value::Int(end), Value::Array(master), ..] = range.as_slice() else {
                return None;
            };
            let [host, Value::Int(port), ..] = master.as_slice() else { return None };
            let host = match host {
                Value::BulkString(host) => std::str::from_utf8(host).ok()?,
                Value::SimpleString(host) => host,
                _ => "",
            };
            // A node that does not know its own name is where it was asked.
            let host = if matches!(host, "" | "?") { node.host() } else { host };
            let owner = self.node(host, u16::try_from(*port).ok()?).ok()?;
            map.ranges.push((u16::try_from(*start).ok()?, u16::try_from(*end).ok()?, owner));
        }
        map.ranges.sort_unstable_by_key(|(start, ..)| *start);
        Some(map)
    }
}

impl Map {
    fn owner(&self, slot: u16) -> Option<Arc<Node>> {
        let at = self.ranges.partition_point(|(start, ..)| *start <= slot).checked_sub(1)?;
        let (_, end, node) = &self.ranges[at];
        (slot <= *end).then(|| Arc::clone(node))
    }

    fn count(&self) -> usize {
        self.ranges.iter().map(|(start, end, _)| usize::from(end.saturating_sub(*start)) + 1).sum()
    }
}

/// Whether nobody has begun with it there.
fn is_elsewhere(error: &RedisError) -> bool {
    matches!(error.code(), Some("MOVED" | "ASK" | "TRYAGAIN" | "READONLY" | "CLUSTERDOWN"))
}

fn address(info: &ConnectionInfo) -> Option<(&str, u16)> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Some((host, *port)),
        _ => None,
    }
}

/// The slot of a key, by its `{tag}` if it has one.
pub(crate) fn slot(key: &[u8]) -> u16 {
    let tag = || {
        let start = key.iter().position(|byte| *byte == b'{')? + 1;
        let length = key[start..].iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &key[start..start + length])
    };
    crc16(tag().unwrap_or(key)) % 16384
}

/// CRC-16 as XMODEM has it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot(b"{user1000}.following"), slot(b"{user1000}.followers"));
        assert_eq!(slot(b"foo{}{bar}"), crc16(b"foo{}{bar}") % 16384);
        assert_eq!(slot(b"foo{{bar}}zap"), crc16(b"{bar") % 16384);
        assert_eq!(slot(b"foo{bar}{zap}"), crc16(b"bar") % 16384);
    }
}
