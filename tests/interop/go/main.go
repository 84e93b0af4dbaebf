// Command interop is the Go peer of Passant's interoperability tests: programs
// written against go-spiffe and spire-api-sdk, libraries nobody here wrote.
//
// This file answers: which subcommands are there, and how do they report?
// Results are JSON objects on standard output, one a line. A failure is a line
// on standard error and exit status 1; a wrong command line is exit status 2.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
)

type command struct {
	name  string
	usage string
	run   func(ctx context.Context, args []string) error
}

func commands() []command {
	return []command{
		{"version", "name the peer libraries and their versions", runVersion},
		{"fetch", "fetch and verify every kind of document once", runFetch},
		{"watch", "log each update of an X.509 watch", runWatch},
		{"follow", "print everything that each of many watches holds, whenever it changes", runFollow},
		{"mtls-server", "accept mutual TLS by SVID and echo lines", runMTLSServer},
		{"mtls-client", "connect by mutual TLS by SVID and send one line", runMTLSClient},
		{"expect-denied", "call the Workload API with a missing, a wrong and the right security header", runExpectDenied},
		{"register", "register a workload with the server's admin socket", runRegister},
		{"node", "attest as a node and show what it may serve", runNode},
		{"mint", "ask the server for SVIDs of an entry, as a node, and log each answer", runMint},
		{"validate", "validate a JWT-SVID offline", runValidate},
		{"node-suite", "run the checks of the server API that a node and an operator make", runNodeSuite},
		{"api-suite", "call every method of the server API as every kind of caller, and judge the answers", runAPISuite},
		{"manager-suite", "make the calls of spire-controller-manager, in its order", runManagerSuite},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if len(os.Args) < 2 {
		usage()
	}
	for _, c := range commands() {
		if c.name != os.Args[1] {
			continue
		}
		err := c.run(ctx, os.Args[2:])
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "interop %s: %v\n", c.name, err)
			os.Exit(1)
		}
		return
	}
	usage()
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: interop COMMAND [FLAGS]")
	for _, c := range commands() {
		fmt.Fprintf(os.Stderr, "  %-14s %s\n", c.name, c.usage)
	}
	os.Exit(2)
}

// emit writes one JSON object and a newline to standard output.
func emit(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}

// peers are the modules under judgement, as linked into this program.
var peers = []string{
	"github.com/spiffe/go-spiffe/v2",
	"github.com/spiffe/spire-api-sdk",
	"google.golang.org/grpc",
}

func runVersion(_ context.Context, _ []string) error {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return errors.New("the binary carries no build information")
	}
	for _, peer := range peers {
		version := ""
		for _, dep := range info.Deps {
			if dep.Path == peer {
				version = dep.Version
			}
		}
		if version == "" {
			return fmt.Errorf("%s is not linked in", peer)
		}
		name := strings.TrimSuffix(peer, "/v2")
		name = name[strings.LastIndexByte(name, '/')+1:]
		fmt.Printf("%s %s\n", name, version)
	}
	return nil
}

// required makes a fault of every named flag that was left empty.
func required(flags *flag.FlagSet, names ...string) error {
	for _, name := range names {
		if flags.Lookup(name).Value.String() == "" {
			return fmt.Errorf("--%s is required", name)
		}
	}
	return nil
}
