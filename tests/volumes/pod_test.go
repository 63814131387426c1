// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Two containers of a pod see each other's writes in its emptyDirs, with the size and modes that
// kubelet gave them; sub paths are of the same volume.
func TestEmptyDirsAreThePods(t *testing.T) {
	p := newPod(t, nil)
	plain, memory := p.make("empty-dir", "plain", 0o777), p.make("empty-dir", "memory", 0o777)
	p.tmpfs(memory, "size=3m,mode=0777")
	grouped := p.make("empty-dir", "grouped", 0o777)
	must(t, os.Chown(grouped, 0, 1234))
	must(t, os.Chmod(grouped, 0o777|os.ModeSetgid))
	both := []specs.Mount{bind(plain, "/a", "rw"), bind(memory, "/m", "rw"), bind(grouped, "/g", "rw")}

	_, out, done := p.start(both, "echo one >/a/file; echo two >/m/file; touch /g/f; until test -e /a/back; do sleep "+
		"0.1; done; cat /a/back", nil)
	got := p.run(both, "cat /a/file /m/file; stat -c '%a %g %F' /a /m /g /g/f; mount | grep ' /m ' | grep -o 'type "+
		"tmpfs'; df -k /m | grep -o ' 3072 '; echo back >/a/back")
	if want := "one\ntwo\n777 0 directory\n777 0 directory\n2777 1234 directory\n644 1234 regular empty file\ntype " +
		"tmpfs\n 3072 \n"; got != want {
		t.Errorf("the second container sees\n%s\nwant\n%s", got, want)
	}
	if code := done(); code != 0 || out.String() != "back\n" {
		t.Errorf("the first container exits %d, saw %q", code, out)
	}
	if got := p.run(both, "cat /a/file"); got != "one\n" {
		t.Errorf("after both have gone a third sees %q", got)
	}
	if got := p.run([]specs.Mount{bind(memory, "/m", "ro")},
		"echo no >/m/file; cat /m/file; dd if=/dev/zero of=/tmp/x bs=1k count=1 2>&1 | grep -c out"); got != "two\n1\n" {
		t.Errorf("a read-only mount says %q", got)
	}
	if code := strings.TrimSpace(p.run(both, "dd if=/dev/zero of=/m/big bs=1024 count=9000 2>&1 | grep -o 'No space'; "+
		"rm /m/big")); code != "No space" {
		t.Errorf("beyond its size the memory volume says %q", code)
	}
	t.Run("sub paths", func(t *testing.T) { subPaths(t, p, plain, memory) })
}

func subPaths(t *testing.T, p *pod, plain, memory string) {
	pods := filepath.Dir(filepath.Dir(filepath.Dir(plain)))
	n := 0
	// sub mounts a sub path as kubelet does, which makes what is missing on its side.
	sub := func(volume, name, rel string) string {
		t.Helper()
		must(t, os.MkdirAll(filepath.Join(volume, rel), 0o777))
		at := filepath.Join(pods, "volume-subpaths", name, "c", fmt.Sprint(n))
		n++
		must(t, os.MkdirAll(at, 0o755))
		must(t, unix.Mount(filepath.Join(volume, rel), at, "", unix.MS_BIND, ""))
		t.Cleanup(func() { must(t, unix.Unmount(at, 0)) })
		t.Cleanup(func() { must(t, os.RemoveAll(filepath.Join(volume, strings.Split(rel, "/")[0]))) })
		return at
	}
	all := []specs.Mount{bind(plain, "/a"), bind(memory, "/m")}
	if got := p.run(append(all, bind(sub(plain, "plain", "deep/er"), "/s"), bind(sub(memory, "memory", "d"), "/n")),
		"echo sub >/s/f; echo mem >/n/f; cat /a/deep/er/f /m/d/f; stat -c %a /a/deep "+
			"/a/deep/er /m/d"); got != "sub\nmem\n777\n777\n777\n" {
		t.Errorf("through the volumes the sub paths show %q", got)
	}
	// The next container gets the file or link that the last one has made at a sub path.
	p.run(all, "echo text >/a/afile; ln -s deep /a/alink; ln -s /etc /a/out; mkdir /a/real; ln -s ../../.. /a/real/up")
	if got := p.run([]specs.Mount{bind(sub(plain, "plain", "afile"), "/f"), bind(sub(plain, "plain", "alink"), "/l")},
		"cat /f; ls /l"); got != "text\ner\n" {
		t.Errorf("a file and a link as sub paths show %q", got)
	}
	p.refused([]specs.Mount{bind(sub(plain, "plain", "out"), "/o")}, "leads out of its volume", nil)
	p.refused([]specs.Mount{bind(sub(plain, "plain", "real/up/x"), "/o")}, "leads out of its volume", nil)
	loose := filepath.Join(pods, "volume-subpaths/plain/c/99")
	must(t, os.MkdirAll(loose, 0o755))
	p.refused([]specs.Mount{bind(loose, "/o")}, "is not mounted", nil)
}

// Volumes that kubelet updates on the host are updated in the guest: a change is atomic, a removed key is
// removed, and modes and owners are the host's.
func TestUpdatesReachARunningContainer(t *testing.T) {
	p := newPod(t, nil)
	config, secret := p.make("configmap", "config", 0o755), p.make("secret", "secret", 0o755)
	p.tmpfs(secret, "mode=0755")
	payload(t, config, "1", map[string]string{"key": "old", "gone": "x", "dir/nested": "n1"})
	payload(t, secret, "1", map[string]string{"password": "old"})
	must(t, os.Chown(filepath.Join(secret, "..data/password"), 7, 1234))
	mounts := []specs.Mount{bind(config, "/c", "ro"), bind(secret, "/s", "ro")}

	_, out, done := p.start(mounts, `cat /c/key /c/gone /c/dir/nested /s/password; echo; ls -A /c
		until test "$(cat /s/password)" = new; do sleep 0.1; done
		while :; do a=$(cat /c/..data/key /c/..data/dir/nested 2>/dev/null); case "$a" in oldn1) ;; newn2) break ;; *) echo "torn: $a" ;; esac; done
		while test -e /c/gone; do sleep 0.1; done
		until test "$(ls -A /c | wc -l)" = 5; do sleep 0.1; done
		cat /c/key /c/added; echo; ls -A /c; stat -Lc '%a %u:%g' /s/password; echo no >/c/key || echo read-only`, nil)
	// another container of the pod, which comes while the first one runs
	if got := p.run(mounts, "cat /c/key /s/password"); got != "oldold" {
		t.Errorf("a second container sees %q", got)
	}
	payload(t, config, "2", map[string]string{"key": "new", "added": "+", "dir/nested": "n2"})
	payload(t, secret, "2", map[string]string{"password": "new"})
	must(t, os.Chown(filepath.Join(secret, "..data/password"), 7, 1234)) // as with an fsGroup
	if code := done(); code != 0 {
		t.Errorf("exit %d", code)
	}
	want := "oldxn1old\n..2026_11_24_1\n..data\ndir\ngone\nkey\n" +
		"new+\n..2026_11_24_2\n..data\nadded\ndir\nkey\n640 7:1234\nread-only\n"
	if got := out.String(); got != want {
		t.Errorf("the container saw\n%s\nwant\n%s", got, want)
	}
}

// The end of the termination message is copied back before the exit is published, and no other file is.
func TestTheTerminationMessageComesBack(t *testing.T) {
	p := newPod(t, nil)
	dir := filepath.Join(filepath.Dir(p.volume), "containers/c")
	must(t, os.MkdirAll(dir, 0o755))
	message := func(name string) string {
		f := filepath.Join(dir, name)
		must(t, os.WriteFile(f, nil, 0o666))
		must(t, os.Chmod(f, 0o666))
		return f
	}
	read := func(f string) string {
		b, err := os.ReadFile(f)
		must(t, err)
		return string(b)
	}
	for name, c := range map[string]struct{ at, script, want string }{
		"11aa": {"/dev/termination-log", "echo -n last words >/dev/termination-log; exit 3", "last words"},
		"22bb": {"/tmp/mine", "echo -n custom >/tmp/mine; exit 3", "custom"},
		"33cc": {
			"/dev/termination-log", "for i in $(seq 2000); do echo line $i; done >/dev/termination-log; exit 3",
			"2000\n",
		},
		"44dd": {"/dev/termination-log", "exit 3", ""},
	} {
		f := message(name)
		_, _, done := p.start([]specs.Mount{bind(f, c.at, "rw")}, c.script, nil)
		if code := done(); code != 3 {
			t.Errorf("%s: exit %d", name, code)
		}
		if got := read(f); !strings.HasSuffix(got, c.want) || len(got) > 4096 || c.want == "" && got != "" {
			t.Errorf("%s: message of %d bytes %.40q, want the end %q", name, len(got), got, c.want)
		}
	}
	// A link in the place of the file is not followed.
	f := message("55ee")
	_, _, done := p.start([]specs.Mount{bind(f, "/dev/termination-log", "rw")},
		"until test -e /tmp/go; do sleep 0.1; echo evil >/dev/termination-log; touch /tmp/go; done", func(*specs.Spec) {
			// nothing to change; the file is swapped below, before the container starts
		})
	victim := filepath.Join(p.dir, "victim")
	must(t, os.WriteFile(victim, []byte("safe"), 0o644))
	must(t, os.Remove(f))
	must(t, os.Symlink(victim, f))
	done()
	if got := read(victim); got != "safe" {
		t.Errorf("the link was followed: %q", got)
	}
}
