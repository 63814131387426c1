// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/virtcontainers"
)

const secret = "secret-of-the-host"

// etc stands in for the host's directory that only root may read and write.
func etc(t *testing.T, p *pod) string {
	t.Helper()
	dir := filepath.Join(p.dir, "stand-in-for-etc")
	must(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o700))
	for _, f := range []string{"shadow", "crontab", "sub/shadow"} {
		must(t, os.WriteFile(filepath.Join(dir, f), []byte(secret+"\n"), 0o600))
	}
	return dir
}

// untouched expects that no file of the host's was written.
func untouched(t *testing.T, dir string) {
	t.Helper()
	for _, f := range []string{"shadow", "crontab", "sub/shadow"} {
		if b, err := os.ReadFile(filepath.Join(dir, f)); err != nil || string(b) != secret+"\n" {
			t.Errorf("VULNERABLE: the host's %s is %q now, %v", f, b, err)
		}
	}
}

// Where hostPath is refused, a path that looks like kubelet's or the engine's is refused as well; and between creation
// and exit a directory that leads to a termination message may be swapped without effect.
func TestAPathIsNotTrustedForItsText(t *testing.T) {
	p := newPod(t, func(c *configs.Config) { c.Runtime.HostPath = "refused" })
	dir := etc(t, p)
	tenant := filepath.Join(p.dir, "srv/tenant/pods", podUID+"x")
	must(t, os.MkdirAll(filepath.Join(tenant, "containers/a"), 0o777))
	must(t, os.MkdirAll(filepath.Join(tenant, "volumes/kubernetes.io~configmap"), 0o777))
	must(t, os.WriteFile(filepath.Join(tenant, "containers/a/crontab"), nil, 0o666))
	must(t, os.Symlink(dir, filepath.Join(tenant, "volumes/kubernetes.io~configmap/c")))
	for _, m := range []specs.Mount{
		bind(filepath.Join(tenant, "containers/a/crontab"), "/a/b/c", "rw"),
		bind(filepath.Join(tenant, "volumes/kubernetes.io~configmap/c"), "/c", "ro"),
		bind(filepath.Join(dir, "shadow"), "/etc/hosts", "ro"),
		bind(filepath.Join(dir, "shadow"), "/run/.containerenv", "ro"),
		bind(dir, "/dev/shm", "rw"),
	} {
		p.refused([]specs.Mount{m}, "runtime.host_path", nil)
	}
	known := filepath.Join(filepath.Dir(p.volume), "containers/c")
	must(t, os.MkdirAll(known, 0o755))
	message := filepath.Join(known, "crontab")
	must(t, os.WriteFile(message, nil, 0o666))
	_, _, done := p.start([]specs.Mount{bind(message, "/dev/termination-log", "rw")}, "echo -n evil >/dev/termination-log",
		nil)
	must(t, os.Rename(known, known+".old"))
	must(t, os.Symlink(dir, known))
	done()
	untouched(t, dir)
	if b, err := os.ReadFile(filepath.Join(known+".old", "crontab")); err != nil || string(b) != "evil" {
		t.Errorf("the message is %q, %v", b, err)
	}
	// A directory that others than root may write to leads nowhere.
	open := filepath.Join(filepath.Dir(p.volume), "containers/d")
	must(t, os.MkdirAll(open, 0o755))
	must(t, os.Chmod(open, 0o777))
	must(t, os.WriteFile(filepath.Join(open, "1"), nil, 0o666))
	p.refused([]specs.Mount{bind(filepath.Join(open, "1"), "/dev/termination-log", "rw")},
		"others than root may write", nil)
}

// Names, owners and times of a host's files arrive as they are, and /dev/null on a file is the guest's.
func TestFilesOfAnyNameAndOwner(t *testing.T) {
	p := newPod(t, nil)
	src := filepath.Join(p.dir, "src")
	for _, n := range []string{"caf\xe9", "x.coco-part", strings.Repeat("n", 255), "nobody", "old"} {
		must(t, os.MkdirAll(src, 0o755))
		must(t, os.WriteFile(filepath.Join(src, n), []byte(n), 0o644))
	}
	must(t, os.Chown(filepath.Join(src, "nobody"), 1<<32-2, 1<<31))
	when := []unix.Timespec{{Sec: 1000000000, Nsec: 123456789}, {Sec: 1000000000, Nsec: 123456789}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(src, "old"), when, 0))
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, src, when, 0))
	must(t, os.Symlink("src", filepath.Join(p.dir, "link"))) // root's own, as /var/run is
	long := "/mnt/" + strings.Repeat("d", 250)
	got := p.run([]specs.Mount{
		bind(src, "/s", "ro"), bind("/dev/null", "/etc/masked", "rw"),
		bind(filepath.Join(p.dir, "link", "old"), long, "ro"),
	},
		`ls /s | wc -l; cat /s/caf*; echo; cat /s/nnn* | wc -c; cat /s/x.coco-part; echo; stat -c '%u %g' /s/nobody; stat -c %y /s/old; stat -c %Y /s
		echo gone >/etc/masked; stat -c '%F %t:%T' /etc/masked; cat /etc/masked; cat `+long)
	want := "5\ncaf\xe9\n255\nx.coco-part\n4294967294 2147483648\n2001-09-09 01:46:40.123456789 " +
		"+0000\n1000000000\ncharacter special file 1:3\nold"
	if got != want {
		t.Errorf("the container says\n%q\nwant\n%q", got, want)
	}
}

// raceTime is how long directories are swapped: COCO_RACE, or a moment.
func raceTime(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv("COCO_RACE")
	if s == "" {
		return 4 * time.Second
	}
	d, err := time.ParseDuration(s)
	must(t, err)
	return d
}

// swap exchanges two names without end, until stop is closed.
func swap(t *testing.T, stop <-chan struct{}, pairs ...[2]string) (ended <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			for i, p := range pairs {
				if n>>i&1 == 0 { // so that all of them are seen in all combinations
					err := unix.Renameat2(unix.AT_FDCWD, p[0], unix.AT_FDCWD, p[1], unix.RENAME_EXCHANGE)
					if err != nil && !errors.Is(err, unix.ENOENT) { // the directory of both may be the link now
						t.Errorf("swap %s: %v", p[0], err)
						return
					}
				}
			}
		}
	}()
	return done
}

// hunted are mounts of each kind whose directories and files are swapped for links to dir, and what is swapped. The pod
// makes a volume once, so each attempt has what is swapped at a place of its own.
func hunted(p *pod, dir string) (mounts map[string]func(n string) specs.Mount, pairs [][2]string) {
	write := func(name string) string {
		must(p.t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(p.t, os.WriteFile(name, []byte("harmless\n"), 0o666))
		return name
	}
	link := func(name, target string) [2]string {
		must(p.t, os.Symlink(target, name+".evil"))
		return [2]string{name, name + ".evil"}
	}
	srv, pods := filepath.Join(p.dir, "srv"), filepath.Dir(p.volume)
	host, parent, claim, config := srv+"/host", srv+"/path/etc", srv+"/claim", srv+"/config"
	for i := range 40 {
		write(filepath.Join(host, "many", fmt.Sprint(i)))
	}
	for _, d := range []string{host + "/sub", parent, claim + "/sub"} {
		write(d + "/shadow")
	}
	must(p.t, os.Chown(srv+"/path", 1000, 1000)) // a tenant's: root's own links would be followed
	must(p.t, os.MkdirAll(config, 0o755))
	payload(p.t, config, "1", map[string]string{"shadow": "harmless\n"})
	message := write(pods + "/containers/c/crontab")
	must(p.t, unix.Mkfifo(srv+"/fifo", 0o666))
	csi, maps := p.volume+"/kubernetes.io~csi", p.volume+"/kubernetes.io~configmap"
	mounts = map[string]func(n string) specs.Mount{
		"hostPath": func(n string) specs.Mount { return bind(p.at(host, p.dir, "m", n), "/host", "rw") },
		"a hostPath's parent": func(n string) specs.Mount {
			return bind(p.at(srv+"/path", p.dir, "m", n)+"/etc", "/p", "ro")
		},
		"claim": func(n string) specs.Mount {
			return bind(p.at(claim, csi, "pvc-"+n, "mount"), "/claim", "ro")
		},
		"configMap": func(n string) specs.Mount { return bind(p.at(config, maps, "c"+n), "/config", "ro") },
		"sub path of a hostPath": func(n string) specs.Mount {
			return bind(p.at(host, pods, "volume-subpaths/host/c", n), "/sub", "ro")
		},
		"termination message": func(string) specs.Mount { return bind(message, "/dev/termination-log", "rw") },
	}
	pairs = [][2]string{
		link(host+"/sub", dir), link(claim+"/sub", dir), link(parent, dir), link(pods+"/containers/c", dir),
		link(config+"/..2026_11_24_1", dir), link(message, dir+"/crontab"),
		{host + "/many/0", srv + "/fifo"},
	}
	return mounts, pairs
}

// While containers are made, directories and files that they mount, and those below, are swapped for links to the
// host's. Nothing outside is read or written, and everything ends in time, with a container or a refusal.
func TestSwappedDirectories(t *testing.T) {
	// it makes many containers
	p := newPod(t, func(c *configs.Config) { c.Runtime.WritableLayer = configs.WritableMemory })
	dir := etc(t, p)
	mounts, pairs := hunted(p, dir)
	stop := make(chan struct{})
	ended := swap(t, stop, pairs...)
	made, refused, n := map[string]int{}, map[string]int{}, 0
	for end := time.Now().Add(raceTime(t)); time.Now().Before(end); {
		for name, mount := range mounts {
			n++
			out, err := p.attempt(mount(fmt.Sprint(n)))
			if err != nil {
				if refused[name]++; refused[name] == 1 {
					t.Logf("%s: %v", name, err)
				}
			} else if made[name]++; strings.Contains(out, secret) {
				t.Errorf("VULNERABLE: through a %s the container reads %q", name, out)
			}
		}
		untouched(t, dir)
	}
	close(stop)
	<-ended
	t.Logf("made: %v, refused: %v", made, refused)
	for name := range mounts {
		if made[name]+refused[name] == 0 {
			t.Errorf("no %s was tried", name)
		}
	}
}

// at shows a directory at another place, until the test ends.
func (p *pod) at(dir string, place ...string) string {
	p.t.Helper()
	at := filepath.Join(place...)
	must(p.t, os.MkdirAll(at, 0o755))
	must(p.t, unix.Mount(dir, at, "", unix.MS_BIND, ""))
	p.t.Cleanup(func() { must(p.t, unix.Unmount(at, unix.MNT_DETACH)) })
	return at
}

// attempt runs a container that reads all of a mount and writes to it.
func (p *pod) attempt(m specs.Mount) (string, error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	id := fmt.Sprintf("r%d", p.n.Add(1))
	// Of a file there is nothing to search: elsewhere, in /proc, are files without an end.
	s := spec([]specs.Mount{m}, "sh", "-c",
		fmt.Sprintf("if [ -d %s ]; then cd %[1]s; find . -type f | while read f; do cat $f; done; fi; "+
			"cat %[1]s; echo -n evil >%[1]s; true", m.Destination))
	c, st, err := p.CreateContainer(ctx, virtcontainers.ContainerRequest{ID: id, Bundle: p.dir, Spec: s, Stdout: true})
	if ctx.Err() != nil {
		p.t.Fatalf("CreateContainer() hangs: %v", err)
	}
	if err != nil {
		return "", err
	}
	_, err = c.Init().Start(ctx)
	must(p.t, err)
	var out bytes.Buffer
	_, err = out.ReadFrom(st.Stdout)
	must(p.t, err)
	_, err = c.Init().Wait(ctx)
	must(p.t, err)
	_, err = c.Init().Delete(ctx)
	must(p.t, err)
	return out.String(), nil
}
