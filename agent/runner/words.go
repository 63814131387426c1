// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// refusal is why a container's process cannot be started. Its words are the whole error, since clients show and
// search them: dockerd and its CLI make exit codes 127 and 126 of them.
type refusal string

func (r refusal) Error() string { return string(r) }

// Unwrap is the class that other runtimes' errors of this kind have.
func (r refusal) Unwrap() error { return errdefs.ErrUnknown }

const (
	notInPath = "executable file not found in $PATH"
	noFile    = "no such file or directory"
)

// commandFaults are the runtime's words about a command that is not one, before and after its name, and what
// clients look for instead.
var commandFaults = []struct{ before, after, words string }{
	{"executable file `", "` not found in $PATH", notInPath},
	{"executable file `", "` not found", noFile},
	{"the path `", "` exists but it is not executable", "permission denied"},
	{"the path `", "` is not a regular file", "is a directory, or no file at all: permission denied"},
	{"exec container process `", "`: ", ""}, // the system's own reason follows
}

// fault is the error of a runtime that ended with a message in its log.
func fault(code int, msg string) error {
	msg = systemWords(msg)
	for _, f := range commandFaults {
		rest, ok := strings.CutPrefix(msg, f.before)
		name, reason, found := strings.Cut(rest, f.after)
		if !ok || !found {
			continue
		}
		if f.words != "" {
			reason = f.words
		}
		if reason == noFile && !strings.Contains(name, "/") {
			reason = notInPath
		}
		return refusal(fmt.Sprintf("exec: %q: %s", name, reason))
	}
	return fmt.Errorf("OCI runtime ended with %d: %s", code, msg)
}

// systemWords begins the system's reason at the end of a message in lower case, as everything else that is written in
// Go and as clients search for it: "no such file or directory".
func systemWords(msg string) string {
	i := strings.LastIndex(msg, ": ")
	if i < 0 {
		return msg
	}
	i += len(": ")
	first, n := utf8.DecodeRuneInString(msg[i:])
	next, _ := utf8.DecodeRuneInString(msg[i+n:])
	if !unicode.IsUpper(first) || !unicode.IsLower(next) && next != ' ' { // a name, as in "OCI"
		return msg
	}
	return msg[:i] + string(unicode.ToLower(first)) + msg[i+n:]
}
