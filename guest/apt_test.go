// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// debian is an archive on this machine: release files and one package, signed with a key of its own.
type debian struct {
	*signer
	files map[string][]byte // by path
	url   string
}

const packagesPath = "main/binary-amd64/Packages"

func serveDebian(t *testing.T) *debian {
	t.Helper()
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("no apt-get: an image is built from Debian's packages")
	}
	d := &debian{signer: newSigner(t), files: map[string][]byte{}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := d.files[strings.TrimPrefix(r.URL.Path, "/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(b)
	}))
	t.Cleanup(s.Close)
	d.url = s.URL
	return d
}

// suite puts a release of the archive below a path; fields are those of the Release file that differ from the usual.
func (d *debian) suite(base, suite string, fields map[string]string) {
	deb := []byte("no package, but these bytes")
	index := fmt.Sprintf("Package: tool\nVersion: 1.2-3\nArchitecture: amd64\nFilename: pool/tool.deb\nSize: "+
		"%d\nSHA256: %s\n", len(deb), sha256Hex(deb))
	d.files[base+"/pool/tool.deb"] = deb
	d.files[base+"/dists/"+suite+"/"+packagesPath] = []byte(index)
	usual := map[string]string{
		"Origin": "Debian", "Label": "Debian", "Suite": "stable", "Codename": suite, "Architectures": "amd64",
		"Components": "main",
		"Date":       releaseDate(-time.Hour),
	}
	for k, v := range fields {
		usual[k] = v
	}
	var text strings.Builder
	for _, k := range sortedKeys(usual) {
		if usual[k] != "" {
			fmt.Fprintf(&text, "%s: %s\n", k, usual[k])
		}
	}
	fmt.Fprintf(&text, "SHA256:\n %s %d %s\n", sha256Hex([]byte(index)), len(index), packagesPath)
	d.files[base+"/dists/"+suite+"/InRelease"] = d.clearSign(text.String())
}

func releaseDate(d time.Duration) string {
	return time.Now().Add(d).UTC().Format("Mon, 02 Jan 2006 15:04:05 UTC")
}

// apt is the builder's, with this archive and its key.
func (d *debian) apt(t *testing.T, o Options) *apt {
	t.Helper()
	o.Mirror, o.Suite, o.Progress = d.url+"/debian", DefaultSuite, silent{}
	if o.Cache == "" {
		o.Cache = t.TempDir()
	}
	o.keyring = filepath.Join(t.TempDir(), "keyring.gpg")
	write(t, o.keyring, d.keyring())
	a, err := newApt(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestTheArchiveMustBeTheOneAskedFor(t *testing.T) {
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name   string
		fields map[string]string
		maxAge time.Duration
		pinned bool
		want   string // in the error; empty: accepted
	}{
		{name: "as it should be"},
		{name: "valid for some days yet", fields: map[string]string{"Valid-Until": releaseDate(day)}},
		{
			name: "another release behind a redirect", fields: map[string]string{"Codename": "bookworm", "Suite": "oldstable"},
			want: `signed as the release "bookworm" (suite "oldstable"), and "trixie" was asked for`,
		},
		{
			name: "a suite's name in the place of a codename", fields: map[string]string{"Codename": "sid", "Suite": "trixie"},
			want: `"sid"`,
		},
		{name: "another archive", fields: map[string]string{"Label": "Debian-Security"}, want: `label "Debian-Security"`},
		{name: "another distribution", fields: map[string]string{"Origin": "Ubuntu"}, want: `origin "Ubuntu"`},
		{name: "no origin", fields: map[string]string{"Origin": ""}, want: `origin ""`},
		{name: "expired", fields: map[string]string{"Valid-Until": releaseDate(-day)}, want: "it was valid until"},
		{name: "expired but pinned", fields: map[string]string{"Valid-Until": releaseDate(-day)}, pinned: true},
		{name: "expired but young enough", fields: map[string]string{
			"Valid-Until": releaseDate(-day),
			"Date":        releaseDate(-8 * day),
		}, maxAge: 9 * day},
		{name: "expired and too old", fields: map[string]string{
			"Valid-Until": releaseDate(-day),
			"Date":        releaseDate(-8 * day),
		}, maxAge: 7 * day, want: "longer ago than 168h"},
		{
			name: "for ever but from long ago", fields: map[string]string{"Date": releaseDate(-500 * day)},
			want: "more than 400 days ago",
		},
		{name: "of tomorrow", fields: map[string]string{"Date": releaseDate(2 * day)}, want: "yet to come"},
		{
			name: "of tomorrow and pinned", fields: map[string]string{"Date": releaseDate(2 * day)}, pinned: true,
			want: "yet to come",
		},
		{name: "without a date", fields: map[string]string{"Date": ""}, want: "Date"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := serveDebian(t)
			d.suite("debian", "trixie", tt.fields)
			err := d.apt(t, Options{MaxReleaseAge: tt.maxAge}).update(context.Background(), tt.pinned)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("update = %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("update = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// hostile is a configuration of the host with which apt takes anything.
const hostile = `Acquire::AllowInsecureRepositories "true";
Acquire::AllowWeakRepositories "true";
Acquire::AllowDowngradeToInsecureRepositories "true";
APT::Get::AllowUnauthenticated "true";
Acquire::https::Verify-Peer "false";
Dir::State::lists "/nonexistent/lists";
`

func TestTheHostsAptSettingsDoNotCount(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "apt.conf")
	write(t, conf, []byte(hostile))
	t.Setenv("APT_CONFIG", conf)
	d := serveDebian(t)
	d.suite("debian", "trixie", nil)
	a := d.apt(t, Options{})
	if err := a.update(context.Background(), false); err != nil {
		t.Fatalf("update from a signed archive = %v", err)
	}
	if p, err := a.resolve(context.Background(), "tool"); err != nil || p.Version != "1.2-3" {
		t.Errorf("resolve = %+v, %v", p, err)
	}
	inRelease := "debian/dists/trixie/InRelease"
	signed := d.files[inRelease]
	for name, b := range map[string][]byte{
		"nobody":                     nil,
		"a key that is not Debian's": newSigner(t).clearSign(strings.Split(string(signed), "\n\n")[1]),
		"no longer, since it was changed": []byte(strings.Replace(string(signed), "Architectures: amd64",
			"Architectures: amd64 ", 1) + "x"),
	} {
		delete(d.files, inRelease)
		if b != nil {
			d.files[inRelease] = b
		} else {
			d.files["debian/dists/trixie/Release"] = []byte(strings.SplitAfter(string(signed), "\n\n")[1])
		}
		if err := d.apt(t, Options{}).update(context.Background(), false); err == nil {
			t.Errorf("an archive that %s has signed is accepted", name)
		}
	}
	if out, err := a.command(context.Background(), "apt-config", "dump").Output(); err != nil ||
		strings.Contains(string(out), `"/nonexistent`) ||
		strings.Contains(string(out), `AllowInsecureRepositories "true"`) ||
		strings.Contains(string(out), "DPkg::Post-Invoke") {
		t.Errorf("apt runs with settings of the host (%v):\n%s", err, out)
	}
}

func TestAMirrorCannotGoBackInTime(t *testing.T) {
	d := serveDebian(t)
	cache := t.TempDir()
	d.suite("debian", "trixie", nil)
	if err := d.apt(t, Options{Cache: cache}).update(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	d.suite("debian", "trixie", map[string]string{"Date": releaseDate(-300 * time.Hour), "Version": "13.0"})
	a := d.apt(t, Options{Cache: cache})
	if err := a.update(context.Background(), false); err != nil {
		return // refused
	}
	b, err := os.ReadFile(filepath.Join(a.dir, "lists", strings.ReplaceAll(strings.TrimPrefix(d.url, "http://"), "/", "_")+
		"_debian_dists_trixie_InRelease"))
	if err != nil || strings.Contains(string(b), "Version: 13.0") {
		t.Errorf("an older index took the place of a newer one (%v)", err)
	}
}

func TestAnAddressIsNoOption(t *testing.T) {
	for _, mirror := range []string{
		"[trusted=yes] http://m/debian", "http://m/debian x main\ndeb [trusted=yes] http://e/",
		"m/debian", "cdrom://m", "http:///x", "", "ftp://m/x",
	} {
		if _, err := newApt(Options{
			Suite: DefaultSuite, Mirror: mirror, SecurityMirror: mirror, Cache: t.TempDir(),
			keyring: "/dev/null",
		}); mirror != "" && (err == nil || !strings.Contains(err.Error(), "want an address")) {
			t.Errorf("mirror %q: %v", mirror, err)
		}
	}
}

func TestAVersionThatTheArchiveHasDropped(t *testing.T) {
	d := serveDebian(t)
	d.suite("debian", "trixie", nil)
	a := d.apt(t, Options{})
	if err := a.update(context.Background(), true); err != nil {
		t.Fatal(err)
	}
	gone := Package{Name: "tool", Version: "1.2-2", SHA256: strings.Repeat("ab", 32), Size: 5}
	if _, err := a.fetch(context.Background(), gone); err == nil || !strings.Contains(err.Error(), "--renew-lock") {
		t.Errorf("fetch of a version that is gone = %v", err)
	}
	changed := Package{Name: "tool", Version: "1.2-3", SHA256: strings.Repeat("ab", 32), Size: 5}
	if _, err := a.fetch(context.Background(), changed); err == nil ||
		!strings.Contains(err.Error(), "has not the SHA-256") {
		t.Errorf("fetch of a package with other content than the lock's = %v", err)
	}
}
