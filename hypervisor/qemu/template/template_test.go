// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func store(t *testing.T) Store {
	t.Helper()
	return Store{Dir: filepath.Join(t.TempDir(), "templates"), MaxCount: 3, MaxBytes: 1000, MaxAge: time.Hour}
}

func key(t *testing.T, v any) string {
	t.Helper()
	k, err := Key(v)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// saves writes a state.
func saves(text string) func(context.Context, *os.File) error {
	return func(_ context.Context, f *os.File) error {
		_, err := f.WriteString(text)
		return err
	}
}

func put(t *testing.T, s Store, k, text string) {
	t.Helper()
	if made, err := s.Make(t.Context(), k, "a test", saves(text)); err != nil || !made {
		t.Fatalf("make: %v, %v", made, err)
	}
}

func TestATemplateIsMadeOnceAndUsed(t *testing.T) {
	s, k := store(t), key(t, "one")
	if _, err := s.Open(k); !errdefs.IsNotFound(err) {
		t.Errorf("an absent template: %v", err)
	}
	put(t, s, k, "state")
	made, err := s.Make(t.Context(), k, "", func(context.Context, *os.File) error { return errors.New("called") })
	if err != nil || made {
		t.Errorf("the second make: %v, %v", made, err)
	}
	tpl, err := s.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	defer tpl.Close()
	if err := tpl.Verify(t.Context()); err != nil || tpl.Summary != "a test" || tpl.Bytes != 5 {
		t.Errorf("%+v: %v", tpl.Meta, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tpl.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled verification: %v", err)
	}
	if err := s.Remove(k); err != nil {
		t.Error(err)
	}
	if err := tpl.Verify(t.Context()); err != nil { // whoever has it open goes on
		t.Error(err)
	}
	if err := s.Remove(k); !errdefs.IsNotFound(err) {
		t.Errorf("a second removal: %v", err)
	}
}

func TestDamageIsNoticed(t *testing.T) {
	for name, tc := range map[string]struct {
		damage func(dir string) error
		open   string // in the error of Open; "": it opens
		verify string
	}{
		"a flipped bit": {damage: func(dir string) error {
			return os.WriteFile(dir+"/state", []byte("stbte"), 0o600)
		}, verify: "has digest"},
		"a shorter state": {damage: func(dir string) error { return os.Truncate(dir+"/state", 3) }, open: "3 bytes"},
		"no state":        {damage: func(dir string) error { return os.Remove(dir + "/state") }, open: "no such file"},
		"a device as state": {damage: func(dir string) error {
			return errors.Join(os.Remove(dir+"/state"), os.Symlink("/dev/zero", dir+"/state"))
		}, open: "bytes"},
		"half a description": {damage: func(dir string) error {
			return os.Truncate(dir+"/template.json", 20)
		}, open: "description"},
		"another one's description": {damage: func(dir string) error {
			b, err := os.ReadFile(dir + "/template.json")
			return errors.Join(err, os.WriteFile(dir+"/template.json",
				[]byte(strings.Replace(string(b), `"key":"`, `"key":"0`, 1)), 0o600))
		}, open: "and key"},
		"a later format": {damage: func(dir string) error {
			return os.WriteFile(dir+"/template.json", []byte(`{"schema":2}`), 0o600)
		}, open: "schema 2"},
		"an old one": {damage: func(dir string) error {
			b, err := os.ReadFile(dir + "/template.json")
			year := fmt.Sprintf(`"made":"%d`, time.Now().Year())
			return errors.Join(err, os.WriteFile(dir+"/template.json",
				[]byte(strings.Replace(string(b), year, `"made":"2001`, 1)), 0o600))
		}, open: "older than 1h"},
		"one from before the clock was set back": {damage: func(dir string) error {
			b, err := os.ReadFile(dir + "/template.json")
			year := fmt.Sprintf(`"made":"%d`, time.Now().Year())
			return errors.Join(err, os.WriteFile(dir+"/template.json",
				[]byte(strings.Replace(string(b), year, `"made":"2999`, 1)), 0o600))
		}, open: "clock was set back"},
	} {
		t.Run(name, func(t *testing.T) {
			s, k := store(t), key(t, name)
			put(t, s, k, "state")
			if err := tc.damage(filepath.Join(s.Dir, k)); err != nil {
				t.Fatal(err)
			}
			tpl, err := s.Open(k)
			if err == nil {
				defer tpl.Close()
			}
			if (tc.open == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.open) {
				t.Fatalf("open: %v, not %q", err, tc.open)
			}
			if tc.verify != "" {
				if err := tpl.Verify(t.Context()); err == nil || !strings.Contains(err.Error(), tc.verify) {
					t.Errorf("verify: %v", err)
				}
				return
			}
			put(t, s, k, "new") // the next maker replaces it
		})
	}
}

func TestTheLeastUsedGo(t *testing.T) {
	s := store(t)
	names := []string{"a", "b", "c", "d"}
	for i, n := range names {
		put(t, s, key(t, n), n)
		used := time.Now().Add(time.Duration(i-10) * time.Minute)
		if err := os.Chtimes(filepath.Join(s.Dir, key(t, n)), used, used); err != nil {
			t.Fatal(err)
		}
	}
	has := func(want ...string) {
		t.Helper()
		list, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		var got, keys []string
		for _, e := range list {
			got = append(got, e.Key)
		}
		for _, n := range want {
			keys = append(keys, key(t, n))
		}
		if strings.Join(got, " ") != strings.Join(keys, " ") {
			t.Errorf("%v, not those of %v", got, want)
		}
	}
	has("d", "c", "b")
	tpl, err := s.Open(key(t, "b")) // a use
	if err != nil {
		t.Fatal(err)
	}
	_ = tpl.Close()
	has("b", "d", "c")
	put(t, s, key(t, "large"), strings.Repeat("x", 998)) // two bytes are left: not for three others
	has("large", "b", "d")
	put(t, s, key(t, "larger"), strings.Repeat("x", 2000)) // above the bound by itself: it stays, since it was asked for
	has("larger")
}

func TestAFailedSaveLeavesNothing(t *testing.T) {
	s := store(t)
	for want, save := range map[string]func(context.Context, *os.File) error{
		"no room":             func(context.Context, *os.File) error { return errors.New("no room") },
		"has written nothing": func(context.Context, *os.File) error { return nil },
	} {
		if made, err := s.Make(t.Context(), key(t, want), "", save); made || err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("made %v: %v", made, err)
		}
	}
	if left, _ := filepath.Glob(s.Dir + "/[0-9a-f]*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if left, _ := filepath.Glob(s.Dir + "/.new*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestAStoreThatOthersCanOpenIsRefused(t *testing.T) {
	s := store(t)
	if err := errors.Join(os.Mkdir(s.Dir, 0o700), os.Chmod(s.Dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Make(t.Context(), key(t, 1), "", saves("x")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a directory for all: %v", err)
	}
	for _, k := range []string{"", "..", strings.Repeat("A", 64), key(t, 1) + "0"} {
		if _, err := s.Open(k); !errdefs.IsInvalidArgument(err) {
			t.Errorf("open %q: %v", k, err)
		}
		if err := s.Remove(k); !errdefs.IsInvalidArgument(err) {
			t.Errorf("remove %q: %v", k, err)
		}
	}
}

// A maker is killed with SIGKILL when it has made its directory, written half, and written all but the name. Others
// wait for nothing, and the next maker cleans up.
func TestMakersThatAreKilled(t *testing.T) {
	const envDir, envKey = "COCO_TEST_TEMPLATES", "COCO_TEST_KEY"
	if dir := os.Getenv(envDir); dir != "" { // the child
		s := Store{Dir: dir, MaxCount: 3, MaxBytes: 1000}
		_, _ = s.Make(t.Context(), os.Getenv(envKey), "", func(_ context.Context, f *os.File) error {
			_, _ = f.WriteString("half")
			_, _ = os.Stdout.WriteString("writing\n")
			select {}
		})
		return
	}
	s, k := store(t), key(t, "k")
	cmd := exec.Command(os.Args[0], "-test.run=^TestMakersThatAreKilled$")
	cmd.Env = append(os.Environ(), envDir+"="+s.Dir, envKey+"="+k)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Error(err)
	}
	if _, err := s.Make(t.Context(), k, "", saves("mine")); !errors.Is(err, ErrBusy) {
		t.Errorf("two makers at once: %v", err)
	}
	if _, err := s.Open(k); !errdefs.IsNotFound(err) {
		t.Errorf("a template that is being written: %v", err)
	}
	if err := s.Wanted(k); !errors.Is(err, ErrBusy) {
		t.Errorf("one that is being written is wanted: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if err := s.Wanted(k); err != nil {
		t.Errorf("after a kill: %v", err)
	}
	put(t, s, k, "mine")
	if left, _ := filepath.Glob(s.Dir + "/.new*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A make that failed is not wanted again for a while, and the next Open says why there is no template.
func TestAFailureIsNotedForAWhile(t *testing.T) {
	s, k := store(t), key(t, "one")
	s.Retry = time.Hour
	if err := s.Wanted(k); err != nil {
		t.Errorf("a store that is not there: %v", err)
	}
	broken := func(context.Context, *os.File) error { return errors.New("the guest did not boot") }
	if _, err := s.Make(t.Context(), k, "", broken); err == nil {
		t.Fatal("a broken maker has made one")
	}
	if _, err := s.Open(k); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "the guest did not boot") {
		t.Errorf("open: %v", err)
	}
	if err := s.Wanted(k); err == nil || !strings.Contains(err.Error(), "failed at") {
		t.Errorf("wanted: %v", err)
	}
	if err := s.Wanted(key(t, "another")); err != nil {
		t.Errorf("another one: %v", err)
	}
	note := filepath.Join(s.Dir, faultName+k)
	long := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(note, long, long); err != nil {
		t.Fatal(err)
	}
	if err := s.Wanted(k); err != nil {
		t.Errorf("after a while: %v", err)
	}
	put(t, s, key(t, "another"), "state") // which removes what is old
	if _, err := os.Stat(note); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the note stays: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	told := func(ctx context.Context, _ *os.File) error { return context.Cause(ctx) }
	if _, err := s.Make(ctx, k, "", told); !errors.Is(err, context.Canceled) || s.Wanted(k) != nil {
		t.Errorf("a maker that was told to end: %v, %v", err, s.Wanted(k))
	}
	if _, err := s.Make(t.Context(), k, "", broken); err == nil {
		t.Fatal("a broken maker has made one")
	}
	put(t, s, k, "state") // by a command, which does not ask
	if err := s.Remove(k); err != nil {
		t.Error(err)
	}
	if err := s.Wanted(k); err != nil {
		t.Errorf("after a make that went well: %v", err)
	}
}

func TestAFullFileSystemGetsNoTemplate(t *testing.T) {
	s := store(t)
	s.MinFree = 1 << 60
	_, err := s.Make(t.Context(), key(t, 1), "", saves("x"))
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "MiB free") {
		t.Errorf("%v", err)
	}
	s.MinFree, s.MaxBytes = 0, 1<<60
	if room, err := s.room(); err != nil || room <= 0 || room > 1<<58 {
		t.Errorf("a bound that is larger than the file system: %d, %v", room, err)
	}
}
