// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package runner

import "testing"

func TestWhatClientsSearchFor(t *testing.T) {
	for msg, want := range map[string]string{
		"executable file `nosuchcmd` not found in $PATH: No such file or directory":             `exec: "nosuchcmd": executable file not found in $PATH`,
		"executable file `/nosuch/cmd` not found: No such file or directory":                    `exec: "/nosuch/cmd": no such file or directory`,
		"the path `/etc/passwd` exists but it is not executable: Operation not permitted":       `exec: "/etc/passwd": permission denied`,
		"the path `/tmp` is not a regular file: Operation not permitted":                        `exec: "/tmp": is a directory, or no file at all: permission denied`,
		"exec container process `/x`: Exec format error":                                        `exec: "/x": exec format error`,
		"executable file `a` not found in $PATH` not found in $PATH: No such file or directory": `exec: "a": executable file not found in $PATH`,
		"chdir to `/no`: No such file or directory": "OCI runtime ended with " +
			"1: chdir to `/no`: no such file or directory",
		"mount `proc` to `proc`: Operation not permitted": "OCI runtime ended with 1: mount `proc` to `proc`: operation " +
			"not permitted",
		"no reason was logged": "OCI runtime ended with 1: no reason was logged",
		"ends with: ":          "OCI runtime ended with 1: ends with: ",
		"a: OCI":               "OCI runtime ended with 1: a: OCI",
	} {
		if got := fault(1, msg).Error(); got != want {
			t.Errorf("%q = %q, want %q", msg, got, want)
		}
	}
}
