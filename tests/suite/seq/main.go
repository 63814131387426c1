// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command seq prints the integers from 1 to its last argument, with the separator of -s between them. It is in the
// images of containerd's client suite: busybox's seq calculates with floating point numbers, which takes an emulated
// processor ten seconds for the million numbers that one test asks for a hundred times.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"strconv"
)

func main() {
	separator := flag.String("s", "\n", "between two numbers")
	flag.Parse()
	last, err := strconv.Atoi(flag.Arg(0))
	if err != nil {
		fmt.Fprintf(os.Stderr, "seq: the last number %q is none\n", flag.Arg(0))
		os.Exit(2)
	}
	out := bufio.NewWriter(os.Stdout)
	for n := 1; n <= last; n++ {
		if n > 1 {
			_, _ = out.WriteString(*separator)
		}
		_, _ = out.Write(strconv.AppendInt(out.AvailableBuffer(), int64(n), 10))
	}
	_, _ = out.WriteString("\n")
	if err := out.Flush(); err != nil {
		os.Exit(1)
	}
}
