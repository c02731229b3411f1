// Written by `phi-edge bundle`. onnxruntime-genai behind the same interface as the other targets.
package com.example.phiedge

import ai.onnxruntime.genai.Generator
import ai.onnxruntime.genai.GeneratorParams
import ai.onnxruntime.genai.Model
import ai.onnxruntime.genai.Tokenizer
import android.system.Os
import java.io.File

/**
 * An opened artifact; one request at a time, on a thread that may block. [folder] is where the app has unpacked the
 * files of `model/`. Sampling is greedy.
 */
class PhiEdge(folder: File) : AutoCloseable {
    init {
        // onnxruntime-genai's official builds report usage to their maker unless this is set before the library loads.
        Os.setenv("ORT_DISABLE_TELEMETRY", "1", true)
    }

    private val model = Model(folder.path)
    private val tokenizer = Tokenizer(model)
    @Volatile private var cancelled = false

    /** Gives the answer's text piece by piece to [onText], and returns how it ended. */
    fun generate(request: Request, onText: (String) -> Unit): Done {
        require(request.maxNewTokens >= 1) { "maxNewTokens is ${request.maxNewTokens}; give 1 or more" }
        cancelled = false
        val ids = tokenizer.encode(Chat.prompt(request.messages)).use { it.getSequence(0) }
        val room = minOf(request.maxNewTokens, Artifact.CONTEXT_TOKENS - ids.size)
        require(room >= 1) { "the prompt has ${ids.size} tokens; a context of ${Artifact.CONTEXT_TOKENS} takes fewer" }
        val scanner = StopScanner(request.stop)
        var tokens = 0
        GeneratorParams(model).use { params ->
            params.setSearchOption("max_length", Artifact.CONTEXT_TOKENS.toDouble())
            params.setSearchOption("do_sample", false)
            Generator(model, params).use { generator ->
                tokenizer.createStream().use { stream ->
                    generator.appendTokens(ids)
                    while (tokens < room && !cancelled) {
                        generator.generateNextToken()
                        val id = generator.getLastTokenInSequence(0)
                        if (id in Artifact.STOP_IDS) {
                            scanner.rest().let { if (it.isNotEmpty()) onText(it) }
                            return Done(Finish.EOS, tokens)
                        }
                        tokens++
                        val shown = scanner.add(stream.decode(id))
                        if (shown.isNotEmpty()) onText(shown)
                        scanner.found?.let { return Done(Finish.STOP, tokens, stopString = it) }
                    }
                }
            }
        }
        scanner.rest().let { if (it.isNotEmpty()) onText(it) }
        return Done(if (cancelled) Finish.CANCELLED else Finish.LENGTH, tokens)
    }

    /** Ends the running answer after the token that is being computed. May be called from any thread. */
    fun cancel() {
        cancelled = true
    }

    override fun close() {
        tokenizer.close()
        model.close()
    }
}
