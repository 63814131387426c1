// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBuildRefusesOptions(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		want string
	}{
		{"another runtime", Options{Out: "x", Agent: "y", Runtime: "youki"}, `runtime "youki": not one of crun, runc`},
		{"another compression", Options{Out: "x", Agent: "y", Compression: "arj"}, `compression "arj"`},
		{"a suite that is a path", Options{Out: "x", Agent: "y", Suite: "../x"}, "not a suite's name"},
		{"a version that is no date", Options{Out: "x", Agent: "y", Version: "yesterday"}, "not of the form"},
		{"nothing", Options{}, "no output directory"},
		{"two locks", Options{Out: "x", Agent: "y", Locked: true, Lock: "z"}, "--lock and --renew-lock name another"},
		{"a lock to renew without a name", Options{Out: "x", Agent: "y", RenewLock: true}, "no lock file is named"},
		{"no agent", Options{Out: "x"}, "no coco-agent binary"},
		{"an agent that is not there", Options{Out: "x", Agent: "/nonexistent/agent"}, "read the agent"},
		{"an agent that is no program", Options{Out: "x", Agent: "/etc/passwd"}, "no program for Linux"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.Cache = t.TempDir()
			_, err := Build(context.Background(), tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Build = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestLoadLock(t *testing.T) {
	pkg := `{"name":"linux-image-6","version":"6-1","sha256":"` + strings.Repeat("ab", 32) + `","size":1}`
	for _, tt := range []struct{ name, content, want string }{
		{"a good one", `{"suite":"trixie","kernel":"linux-image-6","packages":[` + pkg + `]}`, ""},
		{
			"of another suite", `{"suite":"sid","kernel":"linux-image-6","packages":[` + pkg + `]}`,
			"is for suite sid, not trixie",
		},
		{
			"without its kernel", `{"suite":"trixie","kernel":"linux-image-7","packages":[` + pkg + `]}`,
			"linux-image-7 is not among",
		},
		{
			"with an option as a version",
			`{"suite":"trixie","kernel":"k","packages":[{"name":"--option","version":"1","sha256":"` + strings.Repeat("ab", 32) +
				`","size":1}]}`, "malformed",
		},
		{"with an unknown key", `{"suit":"trixie"}`, "unknown field"},
		{"cut short", `{"suite":"trixie"`, "unexpected EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "lock")
			write(t, name, []byte(tt.content))
			l, err := loadLock(name, "trixie")
			if tt.want == "" {
				if err != nil || l == nil {
					t.Errorf("loadLock = %v, %v", l, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("loadLock = %v, want an error with %q", err, tt.want)
			}
		})
	}
	if l, err := loadLock(filepath.Join(t.TempDir(), "none"), "trixie"); l != nil || err != nil {
		t.Errorf("loadLock of no file = %v, %v, want nothing", l, err)
	}
}

func TestBuildWritesTheLockOnce(t *testing.T) {
	lock := filepath.Join(t.TempDir(), "lock")
	dir := storeImage(t, Options{Lock: lock})
	got, err := os.ReadFile(lock)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(dir, LockName))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("lock file and the image's list of packages differ (%v)", err)
	}
	if _, err := ReadLock(bytes.NewReader(got)); err != nil {
		t.Errorf("ReadLock of a written lock = %v", err)
	}
}

func TestTheLockOfThisReleaseIsForTheDefaultImage(t *testing.T) {
	l, err := Options{Locked: true, Suite: DefaultSuite}.pins()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := l.find(DefaultRuntime); !ok || !strings.HasPrefix(l.Kernel, "linux-image-") ||
		!strings.Contains(l.Kernel, "cloud") {
		t.Errorf("the lock pins kernel %s and no %s (make image-lock renews it)", l.Kernel, DefaultRuntime)
	}
	if _, err := (Options{Locked: true, Suite: "sid"}).pins(); err == nil ||
		!strings.Contains(err.Error(), "is for suite trixie, not sid") {
		t.Errorf("pins for another suite = %v", err)
	}
}

func TestALockIsRenewedOnlyWhenAskedFor(t *testing.T) {
	lock := filepath.Join(t.TempDir(), "lock")
	write(t, lock, releaseLock)
	o := Options{Lock: lock, Suite: DefaultSuite}
	if l, err := o.pins(); err != nil || l == nil {
		t.Errorf("pins with a lock file = %v, %v", l, err)
	}
	o.RenewLock = true
	if l, err := o.pins(); err != nil || l != nil {
		t.Errorf("pins of a lock to renew = %v, %v, want none", l, err)
	}
	storeImage(t, o)
	if b, err := os.ReadFile(lock); err != nil || bytes.Equal(b, releaseLock) {
		t.Errorf("--renew-lock left the lock as it was (%v)", err)
	}
}

func TestParseShow(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	in := "Package: linux-image-cloud-amd64\nVersion: 6.12-1\nDepends: linux-image-6.12-cloud-amd64 (= 6.12-1), a | b, " +
		"c:any\nSize: 12\nSHA256: " + sum + "\n\nPackage: other\n"
	got, err := parseShow([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	want := Package{
		Name: "linux-image-cloud-amd64", Version: "6.12-1", SHA256: sum, Size: 12,
		depends: []string{"linux-image-6.12-cloud-amd64", "a", "c"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Package{})); diff != "" {
		t.Errorf("parseShow (-want +got):\n%s", diff)
	}
	if _, err := parseShow([]byte("Package: x\nVersion: 1\nSize: 3\n")); err == nil {
		t.Error("parseShow accepted a record without a digest")
	}
}

func TestReadTarKeepsFilesAndLinksOnly(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "./usr/bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./usr/bin/../../etc/x", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1},
		{Name: "../../climb", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 1},
		{Name: "./lib/l", Typeflag: tar.TypeSymlink, Linkname: "m"},
		{Name: "./dev/null", Typeflag: tar.TypeChar},
		{Name: "./skip", Typeflag: tar.TypeReg, Size: 1},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("d")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := readTar(&b, func(n string) bool { return n != "skip" })
	if err != nil {
		t.Fatal(err)
	}
	want := []tarFile{
		{path: "etc/x", mode: 0o644, data: []byte("d")},
		{path: "climb", mode: 0o755, data: []byte("d")},
		{path: "lib/l", target: "m"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(tarFile{})); diff != "" {
		t.Errorf("readTar (-want +got):\n%s", diff)
	}
}

func TestErrorLinesPicksWhatAptComplainsAbout(t *testing.T) {
	got := errorLines([]byte("Get:1 x\nErr:2 http://m trixie InRelease\n  Could not resolve 'm'\nE: Failed to fetch\n"))
	if want := "Err:2 http://m trixie InRelease; E: Failed to fetch"; got != want {
		t.Errorf("errorLines = %q, want %q", got, want)
	}
}

// TestCachedPackagesBuildTheSameImageTwice needs neither root nor a network, only what an earlier build fetched.
func TestCachedPackagesBuildTheSameImageTwice(t *testing.T) {
	if testing.Short() {
		t.Skip("unpacks a kernel package twice")
	}
	lock := filepath.Join("..", "dist", "guest", LockName)
	for _, need := range []string{lock, filepath.Join(DefaultCache, "apt-"+DefaultSuite, "debs"), debianKeyring} {
		if _, err := os.Stat(need); err != nil {
			t.Skipf("no cached packages: %v (make image fetches them)", err)
		}
	}
	if f, err := os.OpenFile(filepath.Join(DefaultCache, "apt-"+DefaultSuite, "build.lock"), os.O_RDWR, 0); err != nil {
		t.Skipf("the package cache is not ours to use: %v", err)
	} else {
		_ = f.Close()
	}
	agent := filepath.Join(t.TempDir(), "agent")
	src := filepath.Join(t.TempDir(), "main.go")
	write(t, src, []byte("package main\n\nfunc main() {}\n"))
	cmd := exec.Command("go", "build", "-trimpath", "-o", agent, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a stand-in for the agent: %v: %s", err, out)
	}
	var sums [2]map[string]string
	for i := range sums {
		dir := t.TempDir()
		if _, err := Build(context.Background(), Options{Agent: agent, Out: dir, Lock: lock, Offline: true}); err != nil {
			t.Fatal(err)
		}
		sums[i] = readAll(t, dir)
		r, err := Inspect(dir)
		if err != nil || r.Err() != nil {
			t.Errorf("Inspect = %v, %v", err, r.Err())
		}
		checkModules(t, r.Manifest)
	}
	if diff := cmp.Diff(sums[0], sums[1]); diff != "" {
		t.Errorf("two builds of the same packages differ:\n%s", diff)
	}
}

// checkModules looks for what containers and a TEE's reports need. Those of reports may be built into the kernel.
func checkModules(t *testing.T, m Manifest) {
	t.Helper()
	for _, name := range []string{
		"tun", "veth", "bridge", "loop", "wireguard", "nf_tables", "nft_compat", "xt_MASQUERADE",
		"iptable_nat", "tsm", "configfs", "sev-guest", "tdx-guest",
	} {
		if !slices.ContainsFunc(m.Files, func(f File) bool { return strings.HasSuffix(f.Path, "/"+name+".ko.xz") }) {
			t.Errorf("the image has no packed module %s", name)
		}
	}
}
