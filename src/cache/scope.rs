use super::{BypassReason, CacheSecret, encode::Encoder};
use crate::{KbScope, RequestContext, context::Rights};
use std::fmt;

/// Who may be given the same answer: the tenant, the user, and each knowledge base with the caller's rights to it.
///
/// Nothing is kept or found without one, and there is no default.
#[derive(Clone)]
pub struct CacheScope<'a> {
    pub(super) tenant: Option<&'a str>,
    pub(super) user: Option<&'a str>,
    /// In order, each once.
    pub(super) kbs: Vec<&'a KbScope>,
}

impl<'a> CacheScope<'a> {
    /// The scope of a caller.
    ///
    /// # Errors
    ///
    /// [`NoUser`](BypassReason::NoUser) or [`NoAclHash`](BypassReason::NoAclHash): there is none, and nothing may be
    /// cached. An empty id or hash counts as none.
    pub fn of(context: &'a RequestContext) -> Result<Self, BypassReason> {
        match Self::new(context) {
            Ok(Self { user: None, .. }) => Err(BypassReason::NoUser),
            scope => scope,
        }
    }

    /// As [`of`](Self::of), and callers without a user share one scope for each tenant.
    ///
    /// # Errors
    ///
    /// [`NoAclHash`](BypassReason::NoAclHash).
    pub fn or_public(context: &'a RequestContext) -> Result<Self, BypassReason> {
        Self::new(context)
    }

    fn new(context: &'a RequestContext) -> Result<Self, BypassReason> {
        match context.kbs().iter().any(|kb| kb.acl_hash.as_deref().is_none_or(str::is_empty)) {
            true => Err(BypassReason::NoAclHash),
            false => Ok(Self::told(context)),
        }
    }

    /// What a context says, that it may be kept for having been found out before.
    pub(super) fn told(context: &'a RequestContext) -> Self {
        let Rights { tenant_id, user_id, kbs } = context.rights();
        let mut kbs: Vec<&KbScope> = kbs.iter().collect();
        kbs.sort_unstable();
        kbs.dedup();
        Self { tenant: tenant_id, user: user_id.filter(|user| !user.is_empty()), kbs }
    }

    /// What an entry is bound to besides its key.
    pub(super) fn digest(&self, secret: &CacheSecret) -> [u8; 32] {
        let mut encoder = Encoder::<256>::new(secret.scope());
        self.encode(&mut encoder);
        encoder.finish()
    }

    pub(super) fn encode<const N: usize>(&self, encoder: &mut Encoder<'_, N>) {
        let Self { tenant, user, kbs } = self;
        encoder.option(*tenant);
        encoder.option(*user);
        encoder.count(kbs.len());
        for kb in kbs {
            let KbScope { id, acl_hash, version } = kb;
            encoder.bytes(id.as_bytes());
            encoder.option(acl_hash.as_deref());
            encoder.option(version.as_deref());
        }
    }
}

impl fmt::Debug for CacheScope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheScope")
            .field("has_tenant", &self.tenant.is_some())
            .field("has_user", &self.user.is_some())
            .field("kbs", &self.kbs.len())
            .finish_non_exhaustive()
    }
}
