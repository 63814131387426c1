// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/upperwire"
	"github.com/coco-shim/coco/internal/worktest"
)

type entry = upperwire.Entry

func file(name string) entry {
	return entry{Kind: upperwire.File, Name: name, Size: 1, Meta: mode(0o644)}
}
func dir(name string) entry { return entry{Kind: upperwire.Dir, Name: name, Meta: mode(0o755)} }
func mode(m uint32) upperwire.Meta {
	return upperwire.Meta{Mode: m, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
}

func link(name, target string) entry {
	return entry{Kind: upperwire.Symlink, Name: name, Text: target, Meta: mode(0o777)}
}

var (
	leave = entry{Kind: upperwire.LeaveDir}
	end   = entry{Kind: upperwire.End}
)

// stream writes records, and a byte of data for each file.
func stream(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := upperwire.NewWriter(&b)
	for _, e := range entries {
		if err := w.Write(e); err != nil {
			t.Fatal(err)
		}
		if e.Kind != upperwire.File {
			continue
		}
		if err := errors.Join(w.Extent(0, 1, strings.NewReader("x")), w.EndOfFile()); err != nil {
			t.Fatal(err)
		}
	}
	if len(entries) == 0 || entries[len(entries)-1].Kind != upperwire.End {
		if err := w.Write(end); err != nil { // the writer's buffer goes with it
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// place is an engine's directory with a file in it, beside one that nobody may touch.
type place struct {
	t   testing.TB
	dir string
	*Layer
}

func newPlace(t testing.TB) place {
	t.Helper()
	d := t.TempDir()
	for _, n := range []string{"engine/fs/olddir", "lower", "host"} {
		if err := os.MkdirAll(filepath.Join(d, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"engine/fs/old", "host/secret"} {
		if err := os.WriteFile(filepath.Join(d, n), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return place{t, d, New(Dirs{Upper: filepath.Join(d, "engine/fs"), Lower: []string{filepath.Join(d, "lower")}})}
}

// all lists every file with its content.
func (p place) all() []string {
	p.t.Helper()
	var out []string
	err := filepath.WalkDir(p.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		line := strings.TrimPrefix(name, p.dir) + " " + d.Type().String()
		if d.Type().IsRegular() {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			line += " " + string(b)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

var small = Limits{Entries: 1000, Bytes: 1 << 20, Size: 1 << 30}

// hostile are streams that no honest guest sends, and what is said of them.
func hostile(t testing.TB) map[string][2]string {
	t.Helper()
	all := func(entries ...entry) string { return string(stream(t, entries...)) }
	in := func(entries ...entry) string { return all(append(append([]entry{dir("")}, entries...), leave)...) }
	bad := func(kind upperwire.Kind, m upperwire.Meta, size uint64) string {
		return in(entry{Kind: kind, Name: "f", Meta: m, Size: size})
	}
	hides := entry{Kind: upperwire.Whiteout, Name: "f"}
	out := map[string][2]string{
		"a file through a link":     {in(link("l", "../../host"), dir("l"), file("secret"), leave), "twice"},
		"a file at a link's name":   {in(link("l", "../../host/secret"), file("l")), "twice"},
		"a file twice":              {in(file("f"), file("f")), "twice"},
		"a directory twice":         {in(dir("d"), leave, dir("d"), leave), "twice"},
		"a whiteout of a new file":  {in(file("f"), hides), "twice"},
		"a link to nothing":         {in(entry{Kind: upperwire.Link, Name: "l", ID: 7}), "which is not there"},
		"a way up from the root":    {in(leave, file("f")), "follows the end"},
		"an end in a directory":     {all(dir(""), dir("d"), end), "within a directory"},
		"a file first":              {all(file("f")), "first record"},
		"a name of the root":        {all(dir("d"), leave), "has the name"},
		"mode bits of a device":     {bad(upperwire.File, mode(0o20666), 0), "mode"},
		"an owner that is no owner": {bad(upperwire.Fifo, upperwire.Meta{UID: 1<<32 - 1}, 0), "user id"},
		"a bomb of holes":           {bad(upperwire.File, mode(0o600), 1<<62), "are more than"},
		"data behind the end":       {bad(upperwire.File, mode(0o600), 0), "behind its end"},
		"the guest's own failure":   {in(entry{Kind: upperwire.Failed, Text: "disk\nfull"}), `"disk\nfull"`},
		"another version":           {"coco-upper 2\n", "begins with"},
		"nothing":                   {"", "broke off"},
		"half a stream":             {in(dir("d"), file("f"), leave)[:40], "broke off"},
		"too deep":                  {all(append([]entry{dir("")}, slices.Repeat([]entry{dir("d")}, 600)...)...), "deep"},
		"too many entries": {
			in(slices.Repeat([]entry{{Kind: upperwire.Skipped, Name: "s"}}, 1000)...), "more than 1000 entries",
		},
		"a device node": {strings.Replace(bad(upperwire.Fifo, mode(0o600), 0), "p\x01f", "c\x01f", 1), "kind 'c'"},
	}
	for _, name := range []string{"/etc/passwd", "..", ".", "a/b", "../../host/secret", "", "a\x00b"} {
		out[fmt.Sprintf("the name %q", name)] = [2]string{in(file(name)), "is not the name of an entry"}
	}
	out["a long name"] = [2]string{in(file(strings.Repeat("n", 256))), "length of a name"}
	for _, x := range []string{
		"trusted.overlay.redirect", "trusted.overlay.opaque", "user.overlay.redirect", "security.selinux", "user.", "",
	} {
		e := file("f")
		e.Xattrs = []upperwire.Xattr{{Name: x, Value: "/"}}
		out["attribute "+x] = [2]string{in(e), "is not one that is taken"}
	}
	return out
}

func TestHostileStreamsAreRefusedAndNamed(t *testing.T) {
	for name, c := range hostile(t) {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			before := p.all()
			_, err := p.Bring(strings.NewReader(c[0]), small)
			if err == nil || !strings.Contains(err.Error(), c[1]) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Bring() = %v, want %q", err, c[1])
			}
			if after := p.all(); !slices.Equal(before, after) {
				t.Errorf("before\n%q, after\n%q", before, after)
			}
		})
	}
}

// A million entries: the stream is refused at the limit, and nothing of it is left.
func TestAMillionEntriesAreRefused(t *testing.T) {
	p := newPlace(t)
	before := p.all()
	r, w := io.Pipe()
	go func() {
		out := upperwire.NewWriter(w)
		_ = out.Write(dir(""))
		for i := range 1_000_000 {
			if out.Write(entry{Kind: upperwire.Whiteout, Name: fmt.Sprint(i)}) != nil {
				break // the reader has had enough
			}
		}
		_ = w.Close()
	}()
	if os.Getuid() != 0 {
		t.Skip("makes whiteouts: run as root")
	}
	_, err := p.Bring(r, Limits{Entries: 20_000, Bytes: 1 << 20, Size: 1 << 20})
	_ = r.Close()
	if err == nil || !strings.Contains(err.Error(), "more than 20000 entries") {
		t.Errorf("Bring() = %v", err)
	}
	if after := p.all(); !slices.Equal(before, after) {
		t.Errorf("before\n%q, after\n%q", before, after)
	}
}

// The attributes of a directory are kept until its entries are there. Those of its neighbours do not count.
func TestAttributesOfADeepTreeAreBounded(t *testing.T) {
	p := newPlace(t)
	before := p.all()
	wide := Limits{Entries: 10_000, Bytes: 1 << 30, Size: 1 << 30}
	with := func(name string, n, size int) entry {
		d := dir(name)
		for i := range n {
			d.Xattrs = append(d.Xattrs, upperwire.Xattr{Name: fmt.Sprint("user.", i), Value: strings.Repeat("v", size)})
		}
		return d
	}
	deep := slices.Concat([]entry{dir("")}, slices.Repeat([]entry{with("d", 3, 60<<10)}, 23),
		slices.Repeat([]entry{leave}, 24))
	_, err := p.Bring(bytes.NewReader(stream(t, deep...)), wide)
	if err == nil || !strings.Contains(err.Error(), "on the way to it are more than 4194304 bytes") {
		t.Errorf("Bring() = %.300v", err)
	}
	if after := p.all(); !slices.Equal(before, after) {
		t.Errorf("before\n%q, after\n%q", before, after)
	}
	broad := []entry{dir("")}
	for i := range 1500 {
		broad = append(broad, with(fmt.Sprint(i), 1, 3000), leave)
	}
	if _, err := p.Bring(bytes.NewReader(stream(t, append(broad, leave)...)), wide); err != nil {
		t.Errorf("Bring() of 1500 directories = %v", err)
	}
}

// Links that lead out are what a container may have. Nothing follows them on the host.
func TestLinksAreNotFollowed(t *testing.T) {
	p := newPlace(t)
	_, err := p.Bring(bytes.NewReader(stream(t, dir(""), link("l", "../../host"), link("s", "/"), dir("olddir"), file("f"),
		leave, leave)), small)
	if err != nil {
		t.Fatal(err)
	}
	// The next stream has a directory where the link is.
	if _, err := p.Bring(bytes.NewReader(stream(t, dir(""), dir("l"), file("secret"), leave, dir("olddir"), leave, leave)),
		small); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(p.dir, "host/secret")); err != nil || string(b) != "old" {
		t.Errorf("the host's file is %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(p.dir, "engine/fs/l/secret")); err != nil || string(b) != "x" {
		t.Errorf("the container's file is %q, %v", b, err)
	}
	for gone, there := range map[string]bool{"s": false, "olddir": true, "olddir/f": false, "old": true} {
		if _, err := os.Lstat(filepath.Join(p.dir, "engine/fs", gone)); (err == nil) != there {
			t.Errorf("%s: %v", gone, err)
		}
	}
}

func TestAMountIsRefreshedWithItsOptions(t *testing.T) {
	want := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RELATIME | unix.MS_NOSYMFOLLOW)
	if got := flags("rw,nosuid,nodev,noexec,relatime,nosymfollow"); got != want {
		t.Errorf("flags() = %#x", got)
	}
	if err := refresh(t.TempDir()); err != nil {
		t.Errorf("refresh() of what is no mount = %v", err)
	}
}

func FuzzBring(f *testing.F) {
	for _, c := range hostile(f) {
		if len(c[0]) < 4096 {
			f.Add([]byte(c[0]))
		}
	}
	f.Add(stream(f, dir(""), file("f"), entry{Kind: upperwire.File, Name: "g", ID: 1, Size: 1, Meta: mode(0o4755)},
		entry{Kind: upperwire.Link, Name: "h", ID: 1}, dir("olddir"), link("l", "/"), leave, leave))
	f.Fuzz(func(t *testing.T, in []byte) {
		defer worktest.Times(t, len(in), 4)()
		p := newPlace(t)
		_, err := p.Bring(bytes.NewReader(in), small)
		for _, line := range p.all() {
			known := strings.HasPrefix(line, "/engine/fs") || slices.Contains([]string{
				" d---------", "/engine d---------", "/lower d---------", "/host d---------", "/host/secret ---------- old",
			}, line)
			if !known {
				t.Errorf("%q, after %v", line, err)
			}
			if strings.Contains(line, " D") { // a device; whiteouts are character devices of number 0
				var st unix.Stat_t
				if serr := unix.Lstat(filepath.Join(p.dir, strings.SplitN(line, " D", 2)[0]), &st); serr != nil || !whiteout(&st) {
					t.Errorf("a device: %q, %v", line, serr)
				}
			}
		}
	})
}
