// Written by `phi-edge bundle`. What every runner shares: turns to text, stop strings, and values of the artifact.
package com.example.phiedge

enum class Role { SYSTEM, USER, ASSISTANT }

data class Message(val role: Role, val content: String)

enum class Finish { EOS, STOP, LENGTH, CANCELLED, ERROR }

/** What to generate: greedily, from messages. */
data class Request(
    val messages: List<Message>,
    val maxNewTokens: Int = 256,
    val stop: List<String> = emptyList()
)

/** The end of an answer. [stopString] is the one that ended it; [error] says what failed. */
data class Done(val finish: Finish, val tokens: Int, val stopString: String? = null, val error: String? = null)

/** The values of artifact dddddddddddddddd. */
object Artifact {
    const val DIGEST: String = "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
    const val CONTEXT_TOKENS: Int = 512
    val STOP_IDS: IntArray = intArrayOf(257, 261)

    /** A message that contains one of these could forge a turn, so it is refused. */
    val CONTROL_TOKENS: List<String> = listOf(
        "<s>",
        "<|endoftext|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>"
    )

    /** A runner that writes one of these has come to the end of its answer. */
    val END_TOKENS: List<String> = listOf(
        "<s>",
        "<|endoftext|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>"
    )
}

object Chat {
    /** The conversation as the model expects it: perhaps a system message, then user and assistant in turns. */
    fun prompt(messages: List<Message>): String {
        val text = StringBuilder()
        var expected = Role.USER
        for ((index, message) in messages.withIndex()) {
            for (token in Artifact.CONTROL_TOKENS) {
                require(token !in message.content) { "a message contains the control token $token" }
            }
            if (index == 0 && message.role == Role.SYSTEM) {
                text.append("<|system|>\n").append(message.content)
                text.append("<|end|>\n<|user|>\n")
                continue
            }
            require(message.role == expected) { "message $index is ${message.role}, expected $expected" }
            if (message.role == Role.USER) {
                if (text.isEmpty()) text.append("<|user|>\n")
                text.append(message.content).append("<|end|>\n<|assistant|>\n")
                expected = Role.ASSISTANT
            } else {
                text.append(message.content).append("<|end|>\n<|user|>\n")
                expected = Role.USER
            }
        }
        require(expected == Role.ASSISTANT) { "the last message must be the user's" }
        return text.toString()
    }
}

/** Finds stop strings in a text that comes in pieces, and holds back what may be the beginning of one. */
class StopScanner(private val stops: List<String>) {
    private val held = StringBuilder()

    /** The stop string that was found. */
    var found: String? = null
        private set

    init {
        require(stops.none { it.isEmpty() }) { "a stop string is empty" }
    }

    /** The part of the text so far that may be shown now. Nothing comes after a stop string. */
    fun add(piece: String): String {
        if (found != null) return ""
        held.append(piece)
        // The stop string that is complete first wins; of several that end together, the longest.
        for (end in 1..held.length) {
            val seen = held.substring(0, end)
            val hit = stops.filter { seen.endsWith(it) }.sortedByDescending { it.length }.firstOrNull() ?: continue
            found = hit
            val shown = seen.removeSuffix(hit)
            held.setLength(0)
            return shown
        }
        var keep = 0
        for (stop in stops) {
            for (length in minOf(stop.length - 1, held.length) downTo keep + 1) {
                if (held.endsWith(stop.substring(0, length))) {
                    keep = length
                    break
                }
            }
        }
        val shown = held.substring(0, held.length - keep)
        held.delete(0, held.length - keep)
        return shown
    }

    /** What was held back for a stop string that did not come. */
    fun rest(): String = held.toString().also { held.setLength(0) }
}
