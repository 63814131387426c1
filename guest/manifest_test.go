// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/worktest"
)

// storeImage writes a small image as Build does and returns its directory.
func storeImage(t *testing.T, o Options) string {
	t.Helper()
	if o.Out == "" {
		o.Out = t.TempDir()
	}
	o.Compression, o.Progress = CompressZstd, silent{}
	b := &builder{opts: o, used: map[string]Package{}, entries: map[string]Entry{}}
	b.opts.Suite, b.opts.Cmdline, b.opts.Runtime = "trixie", DefaultCmdline, "crun"
	b.kernel = Kernel{Package: "linux-image-6", Version: "6-1", Release: "6"}
	b.record(Package{Name: "linux-image-6", Version: "6-1", SHA256: strings.Repeat("ab", 32), Size: 7})
	b.addSkeleton([]byte("agent"), "usr/bin/crun")
	b.addModules([]module{{name: "m", path: "usr/lib/modules/6/m.ko", data: []byte("ko"), section: sectionRootfs}})
	b.addPackageFile(tarFile{path: "usr/bin/crun", mode: 0o755, data: []byte("crun"), origin: "crun=1"})
	kernel := fakeELF(t, "", pvhNote())
	if _, err := b.write(fakeBzImage(withSize(zstdBytes(t, kernel), len(kernel)))); err != nil {
		t.Fatal(err)
	}
	return o.Out
}

func readAll(t *testing.T, dir string) map[string]string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range list {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = sha256Hex(b)
	}
	return out
}

func TestSameInputsGiveTheSameImage(t *testing.T) {
	a, b := readAll(t, storeImage(t, Options{})), readAll(t, storeImage(t, Options{}))
	if diff := cmp.Diff(a, b); diff != "" {
		t.Errorf("two builds differ:\n%s", diff)
	}
	for _, name := range []string{VmlinuxName, VmlinuzName, InitrdName, ManifestName, LockName} {
		if a[name] == "" {
			t.Errorf("build left no %s", name)
		}
	}
	if len(a) != 5 {
		t.Errorf("build left %d files, want 5: %v", len(a), a)
	}
}

func TestInspectAcceptsAnUntouchedImage(t *testing.T) {
	r, err := Inspect(filepath.Join(storeImage(t, Options{}), InitrdName))
	if err != nil || r.Err() != nil {
		t.Fatalf("Inspect = %v, %v", err, r.Err())
	}
	if want := int64(len("agent") + len("ko") + len("crun") + len(moduleList([]module{{
		name: "m",
		path: "usr/lib/modules/6/m.ko", section: sectionRootfs,
	}}))); r.Unpacked != want {
		t.Errorf("Unpacked = %d, want %d", r.Unpacked, want)
	}
}

func TestInspectNoticesChanges(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, dir string)
		want   string
	}{
		{
			"a flipped bit in vmlinux", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, VmlinuxName)) },
			"vmlinux: sha256",
		},
		{
			"a flipped bit in the initramfs", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, InitrdName)) },
			"initrd.img",
		},
		{
			"a longer vmlinuz", func(t *testing.T, dir string) { grow(t, filepath.Join(dir, VmlinuzName)) },
			"the manifest says",
		},
		{"a missing vmlinuz", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, VmlinuzName)) }, "no such file"},
		{
			"another file in the initramfs", func(t *testing.T, dir string) { repack(t, dir, "init", []byte("other")) },
			"/init of the initramfs",
		},
		{
			"one file more in the initramfs", func(t *testing.T, dir string) { repack(t, dir, "extra", []byte("x")) },
			"/extra of the initramfs is not in the manifest",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := storeImage(t, Options{})
			tt.change(t, dir)
			r, err := Inspect(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Err(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Inspect found %v, want %q", err, tt.want)
			}
		})
	}
}

func TestInspectSaysHowToMakeAnImage(t *testing.T) {
	if _, err := Inspect(t.TempDir()); err == nil || !strings.Contains(err.Error(), "coco guest build") {
		t.Errorf("Inspect of an empty directory = %v", err)
	}
}

func flip(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	write(t, name, b)
}

func grow(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	write(t, name, append(b, 0))
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// repack puts another file into the initramfs and a matching digest of the whole into the manifest, so that only
// the comparison file by file can notice.
func repack(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, InitrdName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries, err := readInitrd(f)
	if err != nil {
		t.Fatal(err)
	}
	b := &builder{entries: map[string]Entry{}}
	for _, e := range entries {
		b.entries[e.Path] = e
	}
	b.add(Entry{Path: name, Mode: modeRegular | 0o755, Data: data})
	entries = nil
	for _, k := range sortedKeys(b.entries) {
		entries = append(entries, b.entries[k])
	}
	img, err := packInitrd(entries, CompressNone)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, InitrdName), img)
	mf, err := os.ReadFile(filepath.Join(dir, ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	m, err := ReadManifest(bytes.NewReader(mf))
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Artifacts {
		if m.Artifacts[i].Name == InitrdName {
			m.Artifacts[i] = newArtifact(InitrdName, img)
		}
	}
	if mf, err = encodeJSON(m); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, ManifestName), mf)
}

func TestReadManifestRefuses(t *testing.T) {
	good, err := os.ReadFile(filepath.Join(storeImage(t, Options{}), ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, old, new, want string }{
		{"an unknown key", `"suite"`, `"sweet"`, "unknown field"},
		{"another schema", `"schema": 1`, `"schema": 2`, "schema is 2"},
		{"a malformed digest", `"sha256": "`, `"sha256": "X`, "malformed"},
		{"an unknown artifact", `"name": "vmlinuz"`, `"name": "../etc/passwd"`, "unknown name"},
		{"no command line", `"cmdline": "`, `"cmdline": "", "runtime": "`, "cmdline is missing"},
		{"an unknown compression", `"compression": "zstd"`, `"compression": "arj"`, "not one of none, zstd, gzip"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := strings.Replace(string(good), tt.old, tt.new, 1)
			if _, err := ReadManifest(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ReadManifest = %v, want an error with %q", err, tt.want)
			}
		})
	}
	if _, err := ReadManifest(strings.NewReader(string(good) + "{}")); err == nil {
		t.Error("ReadManifest accepted data behind the manifest")
	}
}

func FuzzReadManifest(f *testing.F) {
	f.Add(
		[]byte(
			`{"schema":1,"suite":"trixie","kernel":{"release":"6"},"cmdline":"quiet","runtime":"crun","compression":"none","artifacts":[],"packages":[],"files":[]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		defer worktest.Bound(t, len(in))()
		_, _ = ReadManifest(bytes.NewReader(in))
	})
}

func FuzzReadLock(f *testing.F) {
	f.Add([]byte(`{"suite":"trixie","kernel":"k","packages":[{"name":"k","version":"1","sha256":"` + strings.Repeat("ab",
		32) + `","size":1}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		defer worktest.Bound(t, len(in))()
		_, _ = ReadLock(bytes.NewReader(in))
	})
}
