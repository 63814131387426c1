// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"strings"
	"testing"
	"time"

	"github.com/coco-shim/coco/internal/worktest"
)

const inRelease = `-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

Origin: Debian
Label: Debian-Security
Suite: stable-security
Codename: trixie-security
Date: Sat, 28 Nov 2026 02:53:01 UTC
Valid-Until: Sat, 05 Dec 2026 02:53:01 UTC
SHA256:
 00 1 Date: of a file
-----BEGIN PGP SIGNATURE-----

abcd
-----END PGP SIGNATURE-----
`

func TestParseRelease(t *testing.T) {
	got, err := ParseRelease([]byte(inRelease))
	want := Release{
		Origin: "Debian", Label: "Debian-Security", Suite: "stable-security", Codename: "trixie-security",
		Date: time.Date(2026, 11, 28, 2, 53, 1, 0, time.UTC), ValidUntil: time.Date(2026, 12, 5, 2, 53, 1, 0, time.UTC),
	}
	if err != nil || got != want {
		t.Errorf("ParseRelease = %+v, %v, want %+v", got, err, want)
	}
	replace := func(old, with string) string { return strings.Replace(inRelease, old, with, 1) }
	for name, in := range map[string]string{
		"text before the message":   "Codename: trixie\n" + inRelease,
		"text behind the message":   inRelease + "Codename: trixie\n",
		"two messages":              inRelease + inRelease,
		"a field in the header":     replace("Hash: SHA256\n", "Hash: SHA256\nCodename: trixie\n"),
		"a field twice":             replace("Suite:", "Codename: trixie\nSuite:"),
		"no signature":              inRelease[:strings.Index(inRelease, signatureBegin)],
		"a dash":                    replace("Suite:", "- Suite:"),
		"no date":                   replace("Date: Sat", "Dat: Sat"),
		"a date that is none":       replace("28 Nov", "32 Nov"),
		"an end that is no date":    replace("05 Dec 2026", "soon"),
		"nothing":                   "",
		"a Release file, no signer": "Origin: Debian\n",
	} {
		if r, err := ParseRelease([]byte(in)); err == nil {
			t.Errorf("%s: accepted as %+v", name, r)
		}
	}
}

func TestASnapshotMayBeOldButNotNewerThanItself(t *testing.T) {
	r, err := ParseRelease([]byte(inRelease))
	if err != nil {
		t.Fatal(err)
	}
	e := Expected{
		Codename: "trixie-security", Label: LabelSecurity, Now: r.Date.AddDate(3, 0, 0),
		Snapshot: r.Date.Add(time.Hour),
	}
	if err := r.Check(e); err != nil {
		t.Errorf("an old state that was asked for = %v", err)
	}
	e.Snapshot = r.Date.Add(-time.Hour)
	if err := r.Check(e); err == nil || !strings.Contains(err.Error(), "after the state of 2026-11-28 01:53:01 UTC") {
		t.Errorf("a newer state than the one asked for = %v", err)
	}
}

func TestCheckURL(t *testing.T) {
	for _, good := range []string{"https://deb.debian.org/debian", "http://127.0.0.1:8080/debian/", "file:///srv/debian"} {
		if err := CheckURL(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{
		"", "deb.debian.org", "http:///x", "file://srv/x", "https://m/a b", "https://m/\n",
		"https://m/[x]", "cdrom://m/x", "https://u@m/x", "https://m/x#y",
	} {
		if CheckURL(bad) == nil {
			t.Errorf("CheckURL(%q) accepts it", bad)
		}
	}
}

func TestListName(t *testing.T) {
	for address, want := range map[string]string{
		"https://deb.debian.org/debian/": "deb.debian.org_debian_dists_trixie_InRelease",
		"file:///srv/de_bian":            "_srv_de%5fbian_dists_trixie_InRelease",
	} {
		if got := ListName(address, "trixie"); got != want {
			t.Errorf("ListName(%q) = %q, want %q", address, got, want)
		}
	}
}

func FuzzParseRelease(f *testing.F) {
	f.Add(inRelease)
	f.Fuzz(func(t *testing.T, s string) {
		defer worktest.Bound(t, len(s))()
		if r, err := ParseRelease([]byte(s)); err == nil && r.Date.IsZero() && !strings.Contains(s, "0001") {
			t.Errorf("ParseRelease(%q) accepts a file without a date", s)
		}
	})
}
