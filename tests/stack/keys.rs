//! Who asks.

use super::*;

#[tokio::test]
async fn seed_17_keys_say_who_asks_and_hashes_do_as_well() {
    // As `b3sum` gives it.
    let real = blake3::hash(b"hashed").to_hex();
    let text = format!(
        "usage.enabled = false\nproviders.echo.kind = \"echo\"\n[[keys]]\nkey = \"plain\"\nuser = \"ada\"\n\
         [[keys]]\nhash = \"{real}\"\nuser = \"bob\"\nadmin = true\n"
    );
    let (_, handle) = stack(Config::parse(&text).unwrap()).await.unwrap();
    let user =
        |key: &[u8]| handle.caller(Some(key)).map(|caller| caller.context().user_id().unwrap().to_owned());
    assert_eq!(user(b"plain").as_deref(), Some("ada"));
    assert_eq!(user(b"hashed").as_deref(), Some("bob"));
    assert_eq!((user(b"other"), user(b""), user(real.as_str().as_bytes())), (None, None, None));
    assert!(handle.caller(None).is_none());
    assert!(
        handle.caller(Some(b"hashed")).unwrap().is_admin()
            && !handle.caller(Some(b"plain")).unwrap().is_admin()
    );
}

#[tokio::test]
async fn without_keys_everybody_may_ask_everything_but_not_where_the_host_knows_who_asks() {
    let (_, handle) = stack(config("")).await.unwrap();
    assert!(handle.caller(None).is_none() && handle.caller(Some(b"any")).is_none());
    let open = Config::parse("usage.enabled = false\nproviders.echo.kind = \"echo\"\n").unwrap();
    let (_, handle) = stack(open).await.unwrap();
    let nobody = handle.caller(None).unwrap();
    assert!(nobody.is_admin() && !nobody.is_trusted() && nobody.context().user_id().is_none());
}

#[tokio::test]
async fn a_key_has_so_many_calls_in_flight_also_after_a_reload() {
    let text = "usage.enabled = false\nproviders.echo.kind = \"echo\"\n[[keys]]\nkey = \"k\"\nuser = \"ada\"\nmax_in_flight = 2\n";
    let config = || Config::parse(text).unwrap();
    let (_, handle) = stack(config()).await.unwrap();
    let caller = || handle.caller(Some(b"k")).unwrap();
    let one = caller().admit().unwrap();
    let _two = caller().admit().unwrap();
    assert!(caller().admit().is_none());
    handle.reload(config()).unwrap();
    assert_eq!(caller().in_flight(), 2);
    assert!(caller().admit().is_none());
    drop(one);
    assert!(caller().admit().is_some());
}

#[tokio::test]
async fn whom_a_program_knows_has_so_many_calls_in_flight_with_all_his_clones() {
    let context = RequestContext::new().with_user_id("ada").with_departments(["research"]);
    let ada = Caller::of(context).with_max_in_flight(2);
    assert_eq!(ada.context().user_id(), Some("ada"));
    assert!(!ada.is_admin() && !ada.is_trusted());
    assert!(ada.may_ask_about("research") && !ada.may_ask_about("sales"));
    let administrator = ada.clone().admin();
    assert!(administrator.is_admin() && administrator.may_ask_about("sales") && !ada.is_admin());
    let one = ada.admit().unwrap();
    let _two = administrator.admit().unwrap();
    assert!(ada.admit().is_none() && administrator.admit().is_none());
    assert_eq!(ada.in_flight(), 2);
    drop(one);
    assert!(ada.admit().is_some());
    assert!(Caller::of(RequestContext::new()).admit().is_some(), "of others nothing is counted there");
}
