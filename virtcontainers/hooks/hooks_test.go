// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func sh(script string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"WHO=hook"}}
}

func TestHooksReadTheStateAndOnlyTheirEnvironment(t *testing.T) {
	t.Setenv("SECRET", "ours")
	out := filepath.Join(t.TempDir(), "out")
	list := []specs.Hook{sh(`cat > ` + out + `; echo " $WHO $SECRET" >> ` + out)}
	if err := Run(t.Context(), "prestart", list, specs.State{ID: "c1", Pid: 7, Bundle: "/b"}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), `{"ociVersion":"","id":"c1","status":"","pid":7,"bundle":"/b"} hook `+"\n"; got != want {
		t.Errorf("the hook saw %q, want %q", got, want)
	}
}

func TestAFailureNamesTheHookAndQuotesIt(t *testing.T) {
	one, minus := 1, -1
	hang := sh("sleep 1000")
	hang.Timeout = &one
	bad := sh("true")
	bad.Timeout = &minus
	for _, tt := range []struct {
		name string
		hook specs.Hook
		want []string
	}{
		{"it fails", sh("echo why >&2; exit 4"), []string{"createRuntime hook 1 (/bin/sh) of c1", "exit status 4", "why"}},
		{"it hangs", hang, []string{"no end within 1s"}},
		{"it does not exist", specs.Hook{Path: "/nowhere"}, []string{"/nowhere"}},
		{"its path is relative", specs.Hook{Path: "sh"}, []string{"not absolute"}},
		{"its time-out is negative", bad, []string{"not positive"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			err := Run(t.Context(), "createRuntime", []specs.Hook{sh("true"), tt.hook}, specs.State{ID: "c1"})
			if err == nil {
				t.Fatal("Run() succeeded")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("Run() = %v, want %q in it", err, w)
				}
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("Run() took %s", d)
			}
		})
	}
}

func TestPoststopGoesOnAfterAFailure(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	err := RunAll(t.Context(), "poststop", []specs.Hook{sh("exit 1"), sh("echo ran > " + out)}, specs.State{})
	if err == nil {
		t.Error("RunAll() hides the failure")
	}
	if _, err := os.Stat(out); err != nil {
		t.Errorf("the second hook did not run: %v", err)
	}
}
